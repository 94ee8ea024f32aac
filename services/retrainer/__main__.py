"""Starts the retrainer: ``python -m services.retrainer``, settings from the environment.

Two loops: the session logger, in a thread, writes this member's partitions to the session log; the one that decides,
in the main thread, reads engagement, trains and rolls back. Of several retrainers all log, and one decides.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from pydantic import ValidationError

from services.retrainer.cold_start import ColdStart
from services.retrainer.daemon import Retrainer
from services.retrainer.metrics import RetrainerMetrics
from services.retrainer.retention import Retention
from services.retrainer.rollback import Promotions
from services.retrainer.schedule import Schedule, TrainingRules
from services.retrainer.session_log_metrics import SessionLogMetrics
from services.retrainer.session_logger import SessionLogger
from services.retrainer.trainer import ChildTrainer
from shared.adapters.forgets_reader import KafkaForgetsReader
from shared.adapters.health import HealthServer
from shared.adapters.kafka import KafkaInteractionSource
from shared.adapters.kafka_client import TopicAdmin
from shared.adapters.kafka_reader import KafkaReader, ensure_topics
from shared.adapters.logs import configure_logging
from shared.adapters.redis_lease import RedisLease
from shared.adapters.registry import FileModelRegistry
from shared.adapters.session_log import FileSessionLog
from shared.adapters.settings import (
    ConsumerSettings,
    DriftSettings,
    EventSettings,
    KafkaSettings,
    LoggingSettings,
    RedisSettings,
    RegistrySettings,
    RetrainerSettings,
    TrainSettings,
)
from shared.adapters.stalls import end_on_stall
from shared.core.drift import DriftRules
from shared.core.errors import DriftwoodError, TopicMissing, Unavailable

log = logging.getLogger("driftwood.retrainer")

_LEASE = "retrainer"
_TRAINING = [sys.executable, "-m", "services.retrainer.train_job"]
_TRAINING_SLACK_S = 300.0
"""Beyond twice its budget a training does not take long, it hangs."""
_LOG_LINGER_MS = 200


def _now_ms() -> int:
    return int(time.time() * 1000)


class System:
    """Everything that runs, from the settings. Connects to nothing before ``start``."""

    def __init__(self) -> None:
        """Raises ValidationError and SettingsInvalid for a setting that cannot work."""
        self.kafka, self.redis, self.retrainer = KafkaSettings(), RedisSettings(), RetrainerSettings()
        self._events, self._train, self._registry_settings = EventSettings(), TrainSettings(), RegistrySettings()
        self._drift = DriftSettings()
        configure_logging(LoggingSettings())
        self._log = FileSessionLog(
            self.retrainer.session_log_uri, self.retrainer.session_log_max_days, self.retrainer.session_log_max_bytes
        )
        self._lease = RedisLease(self.redis, _LEASE, self.retrainer.retrainer_lease_s)
        self._topics = TopicAdmin(self.kafka)
        self._logger: SessionLogger | None = None
        self._log_problem: str | None = "starting"
        self._stop = threading.Event()
        self._decider = self._build_decider()
        self._logging = threading.Thread(target=self._run_logger, name="session-log", daemon=True)

    def run(self) -> None:
        """Until ``stop``."""
        self._logging.start()
        end_on_stall(self._turned_at, self.retrainer.retrainer_stall_s, "RETRAINER_STALL_S")
        self._decider.run()
        self._logging.join(self.retrainer.retrainer_stall_s)
        self._lease.close()
        self._topics.close()

    def stop(self) -> None:
        """Safe to call from a signal handler."""
        self._stop.set()
        self._decider.stop()
        if self._logger is not None:
            self._logger.stop()

    def ready(self) -> tuple[bool, dict[str, object]]:
        """For /readyz: whether both loops work."""
        logging_problem = self._logger.problem if self._logger is not None else self._log_problem
        deciding = self._decider.problem
        parts = {"session_log": logging_problem or "ok", "drift": deciding or "ok", **self._decider.describe()}
        return logging_problem is None and deciding is None, parts

    def _build_decider(self) -> Retrainer:
        drift, train, metrics = self._drift, self._train, RetrainerMetrics()
        rules = DriftRules(drift.drift_min_events, drift.drift_cooldown_s, drift.drift_delta, drift.drift_min_fall)
        registry = FileModelRegistry(self._registry_settings.model_uri)
        limit_s = 2 * train.train_budget_s + _TRAINING_SLACK_S if train.train_budget_s else 0.0
        cold = ColdStart(self._log, self._events.rules(), train.train_min_sessions, train.train_window_events)
        schedule = Schedule(
            registry,
            ChildTrainer(_TRAINING, os.environ, limit_s),
            lambda: _in_background(self._prepare_log),
            cold.enough,
            TrainingRules(drift.train_auto, drift.model_max_age_s, drift.drift_cooldown_s),
            metrics,
            _now_ms,
        )
        promotions = Promotions(
            registry, metrics, _now_ms, drift.rollback_events, drift.rollback_p, drift.drift_cooldown_s
        )
        retention = Retention(registry, metrics, drift.model_keep)
        look_s = self._registry_settings.model_poll_s
        return Retrainer(
            self._lease, self._open_reader, promotions, schedule, retention, rules, metrics, _now_ms, look_s
        )

    def _open_reader(self) -> KafkaReader:
        topic = self.kafka.topic_engagement
        self._topics.describe(topic)  # one that is missing would be waited for in silence
        return KafkaReader(self.kafka, topic, self._drift.engagement_group)

    def _prepare_log(self) -> None:
        if self._logger is None:
            raise Unavailable(f"session log: {self._log_problem}")
        self._logger.apply_forgets()

    def _run_logger(self) -> None:
        """What ends the loop ends the process: it is started again, and nothing is lost."""
        try:
            self._connect_logger()
            if self._logger is not None:
                self._logger.run()
        except Exception:
            log.critical("the session logger broke", exc_info=True)
            os._exit(70)

    def _connect_logger(self) -> None:
        """Try until it works, or the end."""
        pause = 0.2
        while not self._stop.is_set():
            try:
                if self.kafka.kafka_create_topics:
                    ensure_topics(self.kafka)
                self._logger = self._build_logger()
            except (Unavailable, TopicMissing) as error:
                self._log_problem = str(error)
                log.error("waiting: %s; trying again in %.1f s", error, pause)
                self._stop.wait(pause)
                pause = min(2 * pause, 5.0)
            else:
                break
        if self._stop.is_set() and self._logger is not None:
            self._logger.stop()

    def _build_logger(self) -> SessionLogger:
        settings = self.retrainer
        # Each poll asks the broker whether the topic is still the same: the log can wait for fuller ones.
        member = ConsumerSettings().model_copy(
            update={"consumer_group": settings.session_log_group, "consumer_linger_ms": _LOG_LINGER_MS}
        )
        return SessionLogger(
            KafkaInteractionSource(self.kafka, member),
            self._log,
            KafkaForgetsReader(self.kafka, f"{settings.session_log_group}-forgets"),
            self._events.rules(),
            SessionLogMetrics(),
            settings.session_log_flush_s,
            settings.session_log_flush_events,
            settings.session_log_upkeep_s,
        )

    def _turned_at(self) -> float:
        """Of the loop that came round least recently."""
        return min(self._decider.turned_at, self._logger.turned_at if self._logger else time.monotonic())


def _in_background(work: Callable[[], None]) -> Future[None]:
    """The outcome of ``work``, in a thread of its own that no end of the process waits for."""
    future: Future[None] = Future()

    def run() -> None:
        try:
            work()
            future.set_result(None)
        except Exception as error:  # noqa: BLE001 - handed to the one who waits, whatever it is
            future.set_exception(error)

    threading.Thread(target=run, name="prepare", daemon=True).start()
    return future


def main() -> int:
    """Run until SIGTERM or SIGINT; the exit code."""
    try:
        system = System()
    except (ValidationError, DriftwoodError) as error:
        print(f"settings: {error}", file=sys.stderr)
        return 2

    def on_signal(number: int, _frame: object) -> None:
        log.info("stopping", extra={"signal": signal.Signals(number).name})
        system.stop()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    health = HealthServer(system.retrainer.retrainer_host, system.retrainer.retrainer_port, system.ready)
    health.start()
    log.info("retrainer starts", extra={"kafka": system.kafka.kafka_bootstrap_servers, "port": health.port})
    system.run()
    health.stop()
    log.info("retrainer stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
