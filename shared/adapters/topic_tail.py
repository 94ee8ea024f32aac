"""The newest records of a topic and all that follow, without a group: each reader sees everything. Twin in memory."""

from __future__ import annotations

import time

from kafka import KafkaConsumer, TopicPartition
from kafka import errors as kafka_errors

from shared.adapters.kafka_client import bounded, connected, unavailable
from shared.adapters.memory import MemoryBroker
from shared.adapters.settings import KafkaSettings
from shared.core.errors import TopicMissing
from shared.core.ports import Record

_LOOK_S = 30.0
"""How often it is asked whether the topic has more partitions now."""


class KafkaTopicTail:
    """``newest``: records of each partition to begin with, at most. Not for use by several threads.

    Where the topic is made anew, or what is to be read next was deleted, reading goes on with the oldest that is left.
    After Unavailable, begin with a new one.
    """

    def __init__(self, settings: KafkaSettings, topic: str, newest: int) -> None:
        """Raises Unavailable."""
        self._settings, self._topic, self._newest = settings, topic, newest
        self._known: set[int] = set()
        self._look_at = 0.0
        self._consumer = connected(
            KafkaConsumer,
            settings,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=100,
            metadata_max_age_ms=10_000,
        )

    def poll(self, timeout_s: float, max_records: int) -> list[Record]:
        """The next records, in offset order within each partition. Raises TopicMissing, Unavailable."""
        try:
            if time.monotonic() >= self._look_at:
                bounded(self._settings, self._look)
            polled = self._consumer.poll(round(timeout_s * 1000), max_records=max_records)
        except (kafka_errors.KafkaError, OSError) as error:
            raise unavailable(self._settings, error) from error
        return [record for records in polled.values() for record in records]

    def _look(self) -> None:
        numbers = set(self._consumer.partitions_for_topic(self._topic) or ())
        if not numbers:
            raise TopicMissing(f"Kafka at {self._settings.kafka_bootstrap_servers} has no topic {self._topic!r}")
        added = [TopicPartition(self._topic, number) for number in sorted(numbers - self._known)]
        if added:
            self._consumer.assign([TopicPartition(self._topic, number) for number in sorted(numbers)])
            ends, firsts = self._consumer.end_offsets(added), self._consumer.beginning_offsets(added)
            for tp in added:
                self._consumer.seek(tp, max(firsts[tp], ends[tp] - self._newest))
        self._known = numbers
        self._look_at = time.monotonic() + _LOOK_S

    def close(self) -> None:
        """Close the connection."""
        self._consumer.close(autocommit=False)


class MemoryTopicTail:
    """The same on the broker in memory. Does not wait."""

    def __init__(self, broker: MemoryBroker, topic: str, newest: int) -> None:
        self._broker, self._topic, self._newest = broker, topic, newest
        self._positions: dict[int, int] = {}

    def poll(self, timeout_s: float, max_records: int) -> list[Record]:
        """See KafkaTopicTail."""
        self._broker.check()
        if self._topic not in self._broker.topics:
            raise TopicMissing(f"the broker in memory has no topic {self._topic!r}")
        found: list[Record] = []
        for number, log in enumerate(self._broker.topics[self._topic].partitions):
            at = self._positions.setdefault(number, max(0, len(log) - self._newest))
            at = 0 if at > len(log) else at
            batch = log[at : at + max_records - len(found)]
            self._positions[number] = at + len(batch)
            found += batch
        return found

    def close(self) -> None:
        """Nothing to give back."""
