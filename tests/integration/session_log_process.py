"""One session logger as a process of its own, to be killed: ``python -m tests.integration.session_log_process``."""

from __future__ import annotations

import os
import signal
import sys

from services.retrainer.session_log_metrics import SessionLogMetrics
from services.retrainer.session_logger import SessionLogger
from shared.adapters.forgets_reader import KafkaForgetsReader
from shared.adapters.kafka import KafkaInteractionSource
from shared.adapters.session_log import FileSessionLog
from shared.adapters.settings import ConsumerSettings, EventSettings, KafkaSettings, RetrainerSettings


def main() -> int:
    kafka, retrainer = KafkaSettings(), RetrainerSettings()
    member = ConsumerSettings(
        consumer_group=retrainer.session_log_group, consumer_instance_id=os.environ.get("INSTANCE", "")
    )
    logger = SessionLogger(
        KafkaInteractionSource(kafka, member),
        FileSessionLog(retrainer.session_log_uri, retrainer.session_log_max_days, retrainer.session_log_max_bytes),
        KafkaForgetsReader(kafka, f"{retrainer.session_log_group}-forgets"),
        EventSettings().rules(),
        SessionLogMetrics(),
        retrainer.session_log_flush_s,
        retrainer.session_log_flush_events,
        retrainer.session_log_upkeep_s,
    )
    signal.signal(signal.SIGTERM, lambda *_: logger.stop())
    logger.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
