"""The newest records of a topic and all that follow, without a group: each reader sees everything. Twin in memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

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
    """``newest``: records of each partition to begin with, at most; ``keep_s``: and none that were written longer ago
    than that, where the broker can tell. The embedded one cannot. Not for use by several threads.

    Where the topic is made anew, or what is to be read next was deleted, reading goes on with the oldest that is left.
    After Unavailable, begin with a new one.
    """

    def __init__(self, settings: KafkaSettings, topic: str, newest: int, keep_s: float | None = None) -> None:
        """Raises Unavailable."""
        self._settings, self._topic, self._newest, self._keep_s = settings, topic, newest, keep_s
        self._known: set[int] = set()
        self._next: dict[TopicPartition, int] = {}
        self._ends: dict[TopicPartition, int] = {}
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
        self._next |= {tp: records[-1].offset + 1 for tp, records in polled.items() if records}
        return [record for records in polled.values() for record in records]

    def left(self) -> int:
        """Records that are there and were not given yet, as far as is known without a question."""
        ends = {tp: self._consumer.highwater(tp) or end for tp, end in self._ends.items()}
        return sum(max(0, end - self._next[tp]) for tp, end in ends.items())

    def _look(self) -> None:
        numbers = set(self._consumer.partitions_for_topic(self._topic) or ())
        if not numbers:
            raise TopicMissing(f"Kafka at {self._settings.kafka_bootstrap_servers} has no topic {self._topic!r}")
        added = [TopicPartition(self._topic, number) for number in sorted(numbers - self._known)]
        if added:
            self._consumer.assign([TopicPartition(self._topic, number) for number in sorted(numbers)])
            ends, firsts = self._consumer.end_offsets(added), self._consumer.beginning_offsets(added)
            for tp, begin in self._begins(firsts, ends).items():
                self._consumer.seek(tp, begin)
                self._next[tp] = begin
            self._ends = {tp: end for tp, end in (self._ends | ends).items() if tp.partition in numbers}
        self._known = numbers
        self._look_at = time.monotonic() + _LOOK_S

    def _begins(
        self, firsts: Mapping[TopicPartition, int], ends: Mapping[TopicPartition, int]
    ) -> dict[TopicPartition, int]:
        """Where to begin, by partition."""
        begins = {tp: max(firsts[tp], end - self._newest) for tp, end in ends.items()}
        held = [tp for tp, end in ends.items() if end > firsts[tp]]
        if self._keep_s is not None and held:
            since_ms = int(1000 * (time.time() - self._keep_s))
            found = self._consumer.offsets_for_times(dict.fromkeys(held, since_ms))
            # None: nothing is so new, or, as of the embedded broker, no answer to any time.
            of_any_time = self._consumer.offsets_for_times({tp: 0 for tp in held if found[tp] is None})
            for tp in held:
                if found[tp] is not None:
                    begins[tp] = max(begins[tp], found[tp].offset)
                elif of_any_time[tp] is not None:
                    begins[tp] = ends[tp]
        return begins

    def close(self) -> None:
        """Close the connection."""
        self._consumer.close(autocommit=False)


class MemoryTopicTail:
    """The same on the broker in memory. Does not wait."""

    def __init__(
        self,
        broker: MemoryBroker,
        topic: str,
        newest: int,
        keep_s: float | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._broker, self._topic, self._newest = broker, topic, newest
        self._keep_s, self._clock = keep_s, clock
        self._positions: dict[int, int] = {}

    def poll(self, timeout_s: float, max_records: int) -> list[Record]:
        """See KafkaTopicTail."""
        self._broker.check()
        if self._topic not in self._broker.topics:
            raise TopicMissing(f"the broker in memory has no topic {self._topic!r}")
        found: list[Record] = []
        for number, log in enumerate(self._broker.topics[self._topic].partitions):
            if number not in self._positions:
                self._positions[number] = self._begin(log)
            at = self._positions[number] if self._positions[number] <= len(log) else 0
            batch = log[at : at + max_records - len(found)]
            self._positions[number] = at + len(batch)
            found += batch
        return found

    def _begin(self, log: Sequence[Record]) -> int:
        at = max(0, len(log) - self._newest)
        if self._keep_s is None:
            return at
        since_ms = int(1000 * (self._clock() - self._keep_s))
        return max(at, next((n for n, record in enumerate(log) if record.timestamp >= since_ms), len(log)))

    def left(self) -> int:
        """See KafkaTopicTail."""
        logs = self._broker.topics[self._topic].partitions
        return sum(max(0, len(logs[number]) - at) for number, at in self._positions.items())

    def close(self) -> None:
        """Nothing to give back."""
