"""kafka-python at its edges: what it fetched of another topic, what it does in its own thread, what it knows late."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterator

import pytest
from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import NewPartitions, NewTopic

from shared.adapters.group_lag import GroupLag
from shared.adapters.kafka import KafkaInteractionSource
from shared.adapters.kafka_client import client_config
from shared.adapters.settings import ConsumerSettings, KafkaSettings
from shared.core.errors import Unavailable
from tests.conftest import Broker
from tests.servers import until


@pytest.fixture
def admin(real_kafka: Broker, kafka_settings: KafkaSettings) -> Iterator[KafkaAdminClient]:
    client = KafkaAdminClient(**client_config(kafka_settings))
    yield client
    client.close()


def send(kafka: KafkaSettings, value: bytes, count: int, partitions: range) -> None:
    producer = KafkaProducer(**client_config(kafka))
    for _ in range(count):
        for partition in partitions:
            producer.send(kafka.topic_interactions, value=value, partition=partition)
    producer.flush()
    producer.close()


def member(kafka: KafkaSettings, group: str) -> KafkaInteractionSource:
    return KafkaInteractionSource(kafka, ConsumerSettings(consumer_group=group))


def test_what_was_fetched_of_a_topic_is_not_handed_out_as_of_its_successor(
    admin: KafkaAdminClient, kafka_settings: KafkaSettings
) -> None:
    """Both begin at offset 0, and the client fetches ahead."""
    topic = kafka_settings.topic_interactions
    send(kafka_settings, b"old", 300, range(2))
    source = member(kafka_settings, f"successor-{time.time_ns()}")
    try:
        until(lambda: source.poll(0.2, 100).assigned, what="partitions")
        source.seek(0, 0)
        source.seek(1, 0)
        until(lambda: source.poll(1, 100).records, what="records")  # all of one partition: the other's wait
        source.hold()
        source.poll(0.3, 1)
        source.release()
        admin.delete_topics([topic])
        until(lambda: topic not in admin.list_topics(), what="the topic to go")
        admin.create_topics([NewTopic(topic, 2, 1)])
        until(lambda: topic in admin.list_topics(), what="its successor")
        send(kafka_settings, b"new", 500, range(2))
        until(lambda: source.incarnations([0, 1]).keys() == {0, 1}, what="both partitions")
        source.seek(0, 0)
        source.seek(1, 0)
        found: dict[int, Counter[bytes]] = {0: Counter(), 1: Counter()}

        def all_read() -> bool:
            for partition, records in source.poll(0.2, 1000).records.items():
                found[partition].update(record.value for record in records)
            return all(sum(values.values()) >= 500 for values in found.values())

        until(all_read, 20, "all of it")
        assert found == {0: Counter({b"new": 500}), 1: Counter({b"new": 500})}
    finally:
        source.close()


@pytest.mark.usefixtures("real_kafka")
def test_a_rebalance_under_load_is_told_and_breaks_no_poll(kafka_settings: KafkaSettings) -> None:
    """The owner commits when its partitions are taken away: in kafka-python's own thread, which must not wait."""
    group = f"rebalance-{time.time_ns()}"
    first = member(kafka_settings, group)
    first.on_revoke = lambda partitions: (first.lag(), first.commit(dict.fromkeys(partitions, 5)))  # type: ignore[func-returns-value]
    owned: set[int] = set()

    def turn() -> None:
        polled = first.poll(0.1, 100)
        owned.difference_update(polled.revoked)
        for partition in polled.assigned:
            first.seek(partition, 0)
        owned.update(polled.assigned)

    def owns(count: int) -> bool:
        turn()
        return len(owned) == count

    until(lambda: owns(4), what="all partitions")
    second, stop = member(kafka_settings, group), threading.Event()

    def beside() -> None:
        while not stop.is_set():
            second.poll(0.1, 100)

    thread = threading.Thread(target=beside)
    thread.start()
    try:
        until(lambda: owns(2), 30, "a fair share")  # a poll that breaks raises here
    finally:
        stop.set()
        thread.join()
        second.close()
        first.close()


def test_the_lag_of_a_group_counts_partitions_that_were_just_added(
    admin: KafkaAdminClient, kafka_settings: KafkaSettings
) -> None:
    topic = kafka_settings.topic_interactions
    lag = GroupLag(kafka_settings, f"lag-{time.time_ns()}", topic)
    try:
        assert lag.lag() == 0
        admin.create_partitions({topic: NewPartitions(6)})
        until(lambda: len(lag._admin.describe(topic)[1]) == 6, what="the new partitions")
        time.sleep(0.5)
        send(kafka_settings, b"x", 3, range(5, 6))

        def three() -> bool:
            with contextlib.suppress(
                Unavailable
            ):  # its leader is not known yet: that is said, and not taken for nothing
                assert lag.lag() == 3
                return True
            return False

        until(three, 10, "three records")
    finally:
        lag.close()
