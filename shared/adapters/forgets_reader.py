"""The forgets topic for the session log: a group reader that knows whether it is at the end, and its twin in memory."""

from __future__ import annotations

from collections.abc import Sequence

from shared.adapters.group_lag import GroupLag
from shared.adapters.kafka_client import bounded
from shared.adapters.kafka_reader import KafkaReader
from shared.adapters.memory import MemoryBroker
from shared.adapters.settings import KafkaSettings
from shared.core.errors import Unavailable
from shared.core.ports import Record


class KafkaForgetsReader:
    """The ForgetsReader port. Not for use by several threads."""

    def __init__(self, settings: KafkaSettings, group: str) -> None:
        """``group``: one of its own, for offsets are committed by topic and group. Raises Unavailable."""
        self._settings = settings
        self._group = group
        self._reader = KafkaReader(settings, settings.topic_forgets, group)
        self._lag: GroupLag | None = None

    def poll(self, timeout_s: float, max_records: int) -> list[Record]:
        """See ForgetsReader."""
        return self._reader.poll(timeout_s, max_records)

    def rewind(self, records: Sequence[Record]) -> None:
        """See ForgetsReader."""
        self._reader.rewind(records)

    def commit(self, records: Sequence[Record]) -> None:
        """See ForgetsReader."""
        self._reader.commit(records)

    def lag(self) -> int:
        """See ForgetsReader."""
        if self._lag is None:
            self._lag = GroupLag(self._settings, self._group, self._settings.topic_forgets)
        try:
            return bounded(self._settings, self._lag.lag)
        except Unavailable:
            self._lag = None  # it may hang: closing it might as well
            raise

    def close(self) -> None:
        """See ForgetsReader."""
        self._reader.close()
        if self._lag is not None:
            self._lag.close()


class MemoryForgetsReader:
    """The ForgetsReader port on the broker in memory. A new one begins where the last one of its group committed."""

    def __init__(self, broker: MemoryBroker, topic: str = "forgets", group: str = "forgets") -> None:
        self._broker = broker
        self._topic = topic
        self._group = group
        self._positions: dict[int, int] = {}

    def _committed(self, partition: int) -> int:
        return self._broker.committed.get((self._group, self._topic, partition), 0)

    def poll(self, timeout_s: float, max_records: int) -> list[Record]:
        """See ForgetsReader. Does not wait."""
        self._broker.check()
        found: list[Record] = []
        for record in self._broker.records(self._topic):
            position = self._positions.get(record.partition, self._committed(record.partition))
            if record.offset >= position and len(found) < max_records:
                found.append(record)
                self._positions[record.partition] = record.offset + 1
        return found

    def rewind(self, records: Sequence[Record]) -> None:
        """See ForgetsReader."""
        for record in reversed(records):
            self._positions[record.partition] = record.offset

    def commit(self, records: Sequence[Record]) -> None:
        """See ForgetsReader."""
        self._broker.check()
        for record in records:
            self._broker.committed[self._group, self._topic, record.partition] = record.offset + 1

    def lag(self) -> int:
        """See ForgetsReader."""
        self._broker.check()
        return sum(record.offset >= self._committed(record.partition) for record in self._broker.records(self._topic))

    def close(self) -> None:
        """Nothing to give back."""
