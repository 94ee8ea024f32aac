"""What every InteractionSource and Publisher promises: the twins in memory and a real broker."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from shared.adapters.kafka import KafkaInteractionSource, KafkaPublisher
from shared.adapters.memory import MemoryBroker, MemoryInteractionSource, MemoryPublisher
from shared.adapters.settings import ConsumerSettings, KafkaSettings
from shared.core.errors import TopicMissing
from shared.core.ports import InteractionSource, Publisher, Record


@dataclass
class Ports:
    """A topic of four partitions, a publisher to it and a source that owns all of it."""

    topic: str
    publisher: Publisher
    make_source: Callable[[], InteractionSource]
    sources: list[InteractionSource] = field(default_factory=list)

    def source(self) -> InteractionSource:
        self.sources.append(self.make_source())
        return self.sources[-1]

    def send(self, *values: bytes, partition: int = 0) -> None:
        for value in values:
            self.publisher.send(self.topic, b"k", value, [("h", b"1")], partition)
        self.publisher.flush(30)


@pytest.fixture(params=["memory", "kafka"])
def ports(request: pytest.FixtureRequest) -> Iterator[Ports]:
    if request.param == "memory":
        broker = MemoryBroker(4)
        broker.create("interactions")

        def make() -> InteractionSource:
            source = MemoryInteractionSource(broker, "interactions")
            source.assign(range(4))
            return source

        made = Ports("interactions", MemoryPublisher(broker), make)
    else:
        kafka: KafkaSettings = request.getfixturevalue("kafka_settings")
        consumer = ConsumerSettings(consumer_group=f"g-{time.time_ns()}")
        made = Ports(kafka.topic_interactions, KafkaPublisher(kafka), lambda: KafkaInteractionSource(kafka, consumer))
    yield made
    for source in made.sources:
        source.close()
    made.publisher.close()


def owned(source: InteractionSource, start: dict[int, int] | None = None) -> set[int]:
    """Poll until all four partitions are assigned, then start them."""
    assigned: set[int] = set()
    deadline = time.monotonic() + 30
    while len(assigned) < 4 and time.monotonic() < deadline:
        polled = source.poll(0.2, 100)
        assert not polled.records, "no records before the start is known"
        assigned |= polled.assigned
    for partition in assigned:
        source.seek(partition, (start or {}).get(partition, 0))
    return assigned


def read(source: InteractionSource, count: int) -> list[Record]:
    records: list[Record] = []
    deadline = time.monotonic() + 30
    while len(records) < count and time.monotonic() < deadline:
        for batch in source.poll(0.2, 1000).records.values():
            records += batch
    return records


def test_records_come_in_order_from_where_the_source_was_sent(ports):
    ports.send(b"a", b"b", b"c")
    source = ports.source()
    assert owned(source, {0: 1}) == {0, 1, 2, 3}
    records = read(source, 2)
    assert [(r.partition, r.offset, r.key, r.value) for r in records] == [(0, 1, b"k", b"b"), (0, 2, b"k", b"c")]


def test_a_poll_brings_at_most_what_was_asked_for_and_all_comes_in_the_end(ports):
    ports.send(*[str(n).encode() for n in range(25)])
    source = ports.source()
    owned(source)
    sizes, seen = [], []
    deadline = time.monotonic() + 30
    while len(seen) < 25 and time.monotonic() < deadline:
        batch = [r for batch in source.poll(0.2, 10).records.values() for r in batch]
        sizes.append(len(batch))
        seen += batch
    assert max(sizes) <= 10
    assert [r.value for r in seen] == [str(n).encode() for n in range(25)]


def test_holding_brings_nothing_and_loses_nothing(ports):
    source = ports.source()
    owned(source)
    source.hold()
    ports.send(b"a")
    assert not source.poll(0.5, 10).records
    source.release()
    assert [r.value for r in read(source, 1)] == [b"a"]


def test_bounds_and_lag(ports):
    ports.send(b"a", b"b", partition=2)
    source = ports.source()
    owned(source)
    assert source.bounds([2, 3]) == {2: (0, 2), 3: (0, 0)}
    read(source, 2)
    assert source.lag().get(2, 0) == 0
    source.commit({2: 2})


def test_incarnations_stay_the_same_while_the_topic_lives(ports):
    source = ports.source()
    owned(source)
    before = source.incarnations([0, 1])
    ports.send(b"a")
    assert source.incarnations([0, 1]) == before
    assert set(before) == {0, 1}


def test_a_topic_that_is_not_there_is_named(real_kafka, kafka_settings):
    absent = kafka_settings.model_copy(update={"topic_interactions": "absent-topic"})
    source = KafkaInteractionSource(absent, ConsumerSettings())
    with pytest.raises(TopicMissing, match="absent-topic"):
        source.incarnations([0])
    source.close()
    twin = MemoryInteractionSource(MemoryBroker(), "absent-topic")
    with pytest.raises(TopicMissing, match="absent-topic"):
        twin.incarnations([0])
