"""Group membership with kafka-python, against the best broker there is."""

import time

from kafka import KafkaConsumer

from shared.adapters.kafka_client import client_config
from shared.adapters.kafka_group import Membership
from shared.adapters.settings import KafkaSettings
from tests.servers import until


def test_an_assignment_that_arrives_between_two_polls_is_kept(kafka_settings: KafkaSettings) -> None:
    """A group may have another reason to join again, on a busy machine: not three times in a row."""
    assert any(_kept(kafka_settings) for _ in range(3))


def _kept(kafka: KafkaSettings) -> bool:
    """Whether a member that joined while nobody polled has not joined again."""
    group = f"between-polls-{time.time_ns()}"
    consumer = KafkaConsumer(group_id=group, enable_auto_commit=False, **client_config(kafka))
    coordinator = consumer._coordinator

    def joined_while_nobody_polls() -> bool:
        attempt = coordinator._join_task
        if attempt is None or attempt.failed():  # the first one is sent back to come again with a member id
            consumer.poll(0)
            return False
        return bool(attempt.succeeded())

    try:
        Membership(consumer, kafka, group, kafka.topic_interactions)
        until(joined_while_nobody_polls, what="an assignment")
        generation = coordinator._generation.generation_id
        until(lambda: consumer.poll(100) or consumer.assignment(), what="partitions")
        return bool(coordinator._generation.generation_id == generation)
    finally:
        consumer.close(autocommit=False)
