"""Back-pressure for a replay: not to run further ahead of the consumer than the broker can remember."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from shared.adapters.group_lag import GroupLag
from shared.adapters.settings import ConsumerSettings, KafkaSettings
from shared.core.errors import Unavailable

# The embedded broker keeps about 5 MB a partition and drops the oldest: 4 partitions hold 80,000 events of 250 bytes.
EMBEDDED_MAX_LAG = 40_000
_STUCK_S = 30.0
_LOOK_S = 0.1


class KeepUp:
    """Holds a replay back while the consumer is too far behind; without a limit it never does."""

    def __init__(self, lag: GroupLag | None, limit: int, group: str) -> None:
        self._lag, self.limit, self._group = lag, limit, group

    def wait(self, stop: threading.Event, note: Callable[[str], None]) -> None:
        """Return once the lag is below the limit. Raises Unavailable when the consumer does not move."""
        if self._lag is None:
            return
        least, since = self._lag.lag(), time.monotonic()
        while (lag := self._lag.lag()) > self.limit and not stop.is_set():
            note(f"waiting: the consumer is {lag:,} behind")
            if lag < least:
                least, since = lag, time.monotonic()
            elif time.monotonic() - since > _STUCK_S:
                raise Unavailable(
                    f"group {self._group} is {lag:,} events behind and has not moved for {_STUCK_S:.0f} s; is the "
                    "consumer running? --max-lag 0 publishes all the same"
                )
            stop.wait(_LOOK_S)

    def close(self) -> None:
        """Close the connection."""
        if self._lag is not None:
            self._lag.close()


def keep_up(kafka: KafkaSettings, max_lag: int | None) -> KeepUp:
    """With the limit of --max-lag; where none is given, one for the embedded broker, which forgets what is old."""
    limit = max_lag if max_lag is not None else (EMBEDDED_MAX_LAG if kafka.kafka_api_version else 0)
    group = ConsumerSettings().consumer_group
    return KeepUp(GroupLag(kafka, group, kafka.topic_interactions) if limit else None, limit, group)
