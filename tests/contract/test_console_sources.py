"""What the console reads: a topic's newest records, how far a group is, what recommenders say; twins and real."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable

import pytest
from kafka import KafkaProducer

from shared.adapters.kafka import KafkaPublisher
from shared.adapters.kafka_client import connected
from shared.adapters.kafka_reader import KafkaReader
from shared.adapters.memory import MemoryBroker, MemoryPublisher
from shared.adapters.presence import MemoryPresence, PresenceServer, RedisPresence
from shared.adapters.settings import KafkaSettings, RedisSettings
from shared.adapters.stream_end import KafkaStreamEnd, MemoryStreamEnd
from shared.adapters.topic_tail import KafkaTopicTail, MemoryTopicTail
from shared.core.errors import Unavailable
from tests.servers import embedded_broker, free_port, until


class Topic:
    """A topic with four partitions, as one who writes, one who reads on, and a group that commits."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self.group = f"g-{uuid.uuid4().hex[:8]}"
        if request.param == "memory":
            broker = MemoryBroker(4)
            broker.create("t")
            self.name, self.publisher = "t", MemoryPublisher(broker)
            self.tail: Callable[..., object] = lambda *options: MemoryTopicTail(broker, "t", *options)
            self.write = lambda value, at_ms, partition: broker.append(
                "t", b"k", value, timestamp=at_ms, partition=partition
            )
            self.end = lambda: MemoryStreamEnd(broker, self.group, "t")
            self.take = lambda count: self._take_in_memory(broker)
        else:
            kafka = request.getfixturevalue("kafka_settings")
            self.name, self.publisher = kafka.topic_engagement, KafkaPublisher(kafka)
            self.tail = lambda *options: KafkaTopicTail(kafka, self.name, *options)
            self.write = lambda value, at_ms, partition: written(kafka, self.name, value, at_ms, partition)
            self.end = lambda: KafkaStreamEnd(kafka, self.group, self.name)
            self.take = lambda count: self._take_from(KafkaReader(kafka, self.name, self.group), count)

    def _take_in_memory(self, broker: MemoryBroker) -> None:
        for record in broker.records("t"):
            broker.committed[self.group, "t", record.partition] = record.offset + 1

    def _take_from(self, reader: KafkaReader, count: int) -> None:
        taken = []
        until(lambda: taken.extend(reader.poll(0.2, 100)) or len(taken) == count, 60, "the group has read all")
        reader.commit(taken)
        reader.close()

    def send(self, *values: bytes, partition: int = 0) -> None:
        for value in values:
            self.publisher.send(self.name, b"k", value, (), partition)
        self.publisher.flush(30)


def written(settings: KafkaSettings, topic: str, value: bytes, at_ms: int, partition: int) -> None:
    """In the topic, as if then."""
    producer = connected(KafkaProducer, settings)
    producer.send(topic, value, partition=partition, timestamp_ms=at_ms).get(30)
    producer.close()


def read(tail, count: int) -> list[bytes]:
    """So many values, sorted, and that none follows."""
    seen = []
    until(lambda: seen.extend(r.value for r in tail.poll(0.2, 100)) or len(seen) >= count, 30, f"{count} records")
    seen += [r.value for r in tail.poll(0.5, 100)]
    return sorted(seen)


@pytest.fixture(params=["memory", "kafka"])
def topic(request):
    topic = Topic(request)
    yield topic
    topic.publisher.close()


def test_a_tail_begins_with_the_newest_of_each_partition_and_goes_on(topic):
    topic.send(*(b"%d" % n for n in range(10)))
    topic.send(b"other", partition=2)
    tail = topic.tail(3)
    seen = []
    until(lambda: seen.extend(r.value for r in tail.poll(0.2, 100)) or len(seen) >= 4, 30, "the newest")
    assert sorted(seen) == [b"7", b"8", b"9", b"other"]
    topic.send(b"10", b"11")
    until(lambda: seen.extend(r.value for r in tail.poll(0.2, 100)) or len(seen) >= 6, 30, "what follows")
    assert seen[4:] == [b"10", b"11"]
    tail.close()


@pytest.fixture
def timed(request, topic):
    """A topic whose broker knows what was written when: the embedded one does not."""
    if "kafka" in request.node.callspec.params.values():
        request.getfixturevalue("real_kafka")
    return topic


def test_a_tail_begins_with_what_is_new_enough(timed):
    now_ms = int(time.time() * 1000)
    for hours, value, partition in ((7, b"0", 0), (5, b"1", 0), (3, b"2", 0), (7, b"3", 1), (7, b"4", 1), (1, b"5", 2)):
        timed.write(value, now_ms - hours * 3_600_000, partition)
    tail = timed.tail(1000, 6 * 3600.0)
    assert read(tail, 3) == [b"1", b"2", b"5"]
    assert tail.left() == 0
    timed.write(b"6", now_ms, 1)
    assert read(tail, 1) == [b"6"]
    tail.close()


def test_a_tail_by_time_begins_with_no_more_than_the_newest_and_tells_what_is_left(timed):
    now_ms = int(time.time() * 1000)
    for n in range(8):
        timed.write(b"%d" % n, now_ms - 7_200_000 + n, 0)
    tail = timed.tail(3, 6 * 3600.0)
    first = []
    until(lambda: first.extend(r.value for r in tail.poll(0.2, 1)) or first, 30, "the first")
    assert (first, tail.left()) == ([b"5"], 2)
    assert read(tail, 2) == [b"6", b"7"]
    tail.close()


def test_where_the_broker_knows_no_times_a_tail_begins_with_the_newest():
    with embedded_broker() as bootstrap:
        settings = KafkaSettings(kafka_bootstrap_servers=bootstrap, kafka_api_version="2.0", topic_engagement="e")
        now_ms = int(time.time() * 1000)
        for n in range(4):
            written(settings, "e", b"%d" % n, now_ms - 1000 + n, 0)
        tail = KafkaTopicTail(settings, "e", 3, 6 * 3600.0)
        assert read(tail, 3) == [b"1", b"2", b"3"]
        tail.close()


def test_how_much_there_is_and_how_far_the_group_is(topic):
    end = topic.end()
    assert (end.total(), end.lag()) == (0, 0)
    topic.send(*(b"%d" % n for n in range(5)))
    topic.send(b"x", partition=3)
    assert (end.total(), end.lag()) == (6, 6)
    topic.take(6)
    topic.send(b"y")
    assert (end.total(), end.lag()) == (7, 1)
    end.close()


@pytest.fixture(params=["memory", "redis"])
def speakers(request):
    """Makes a process that speaks: (name, seconds until what it says goes stale)."""
    made = []
    if request.param == "memory":
        server = PresenceServer()
        make = lambda name, ttl_s: MemoryPresence(server, name, ttl_s)  # noqa: E731
    else:
        settings = request.getfixturevalue("redis_settings")
        make = lambda name, ttl_s: RedisPresence(settings, "recommenders", name, ttl_s)  # noqa: E731

    def speaker(name, ttl_s=30.0):
        made.append(make(name, ttl_s))
        return made[-1]

    yield speaker
    for one in made:
        one.close()


def test_each_hears_what_all_say_last(speakers):
    one, two = speakers("one"), speakers("two")
    assert one.tell(b'{"a": 1}') == {"one": b'{"a": 1}'}
    assert two.tell(b"12:34") == {"one": b'{"a": 1}', "two": b"12:34"}
    assert one.tell(b"") == {"one": b"", "two": b"12:34"}


def test_who_is_silent_is_not_heard_any_more(speakers):
    speakers("gone").tell(b"farewell")
    stays = speakers("stays", 0.3)
    until(lambda: stays.tell(b"here") == {"stays": b"here"}, 10, "what the other said to go stale")


def test_redis_away_is_unavailable():
    nobody = RedisPresence(RedisSettings(redis_url=f"redis://127.0.0.1:{free_port()}/0"), "recommenders", "me", 1)
    with pytest.raises(Unavailable, match="Redis at"):
        nobody.tell(b"x")
