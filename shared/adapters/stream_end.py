"""Where a topic ends and how far a group is behind, seen from outside: the console's look at the stream. Twin in
memory."""

from __future__ import annotations

from shared.adapters.group_lag import GroupLag
from shared.adapters.kafka_client import bounded
from shared.adapters.kafka_reader import OffsetReader
from shared.adapters.memory import MemoryBroker
from shared.adapters.settings import KafkaSettings


class KafkaStreamEnd:
    """Never joins the group. Not for use by several threads. After Unavailable, begin with a new one."""

    def __init__(self, settings: KafkaSettings, group: str, topic: str) -> None:
        """Raises Unavailable."""
        self._settings, self._topic = settings, topic
        self._offsets = OffsetReader(settings)
        self._lag = GroupLag(settings, group, topic)

    def total(self) -> int:
        """Records ever written. Raises Unavailable."""
        return sum(self._offsets.end_offsets(self._topic).values())

    def lag(self) -> int:
        """Records that the group has not committed yet. Raises Unavailable."""
        return bounded(self._settings, self._lag.lag)

    def close(self) -> None:
        """Close the connections."""
        self._offsets.close()
        self._lag.close()


class MemoryStreamEnd:
    """The same on the broker in memory."""

    def __init__(self, broker: MemoryBroker, group: str, topic: str) -> None:
        self._broker, self._group, self._topic = broker, group, topic

    def total(self) -> int:
        """See KafkaStreamEnd."""
        self._broker.check()
        return len(self._broker.records(self._topic))

    def lag(self) -> int:
        """See KafkaStreamEnd."""
        self._broker.check()
        done = self._broker.committed
        return sum(r.offset >= done.get((self._group, self._topic, r.partition), 0)
                   for r in self._broker.records(self._topic))  # fmt: skip

    def close(self) -> None:
        """Nothing to give back."""
