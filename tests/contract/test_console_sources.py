"""What the console reads: a topic's newest records, how far a group is, what recommenders say; twins and real."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest

from shared.adapters.kafka import KafkaPublisher
from shared.adapters.kafka_reader import KafkaReader
from shared.adapters.memory import MemoryBroker, MemoryPublisher
from shared.adapters.presence import MemoryPresence, PresenceServer, RedisPresence
from shared.adapters.settings import RedisSettings
from shared.adapters.stream_end import KafkaStreamEnd, MemoryStreamEnd
from shared.adapters.topic_tail import KafkaTopicTail, MemoryTopicTail
from shared.core.errors import Unavailable
from tests.servers import free_port, until


class Topic:
    """A topic with four partitions, as one who writes, one who reads on, and a group that commits."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self.group = f"g-{uuid.uuid4().hex[:8]}"
        if request.param == "memory":
            broker = MemoryBroker(4)
            broker.create("t")
            self.name, self.publisher = "t", MemoryPublisher(broker)
            self.tail: Callable[[int], object] = lambda newest: MemoryTopicTail(broker, "t", newest)
            self.end = lambda: MemoryStreamEnd(broker, self.group, "t")
            self.take = lambda count: self._take_in_memory(broker)
        else:
            kafka = request.getfixturevalue("kafka_settings")
            self.name, self.publisher = kafka.topic_engagement, KafkaPublisher(kafka)
            self.tail = lambda newest: KafkaTopicTail(kafka, self.name, newest)
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
