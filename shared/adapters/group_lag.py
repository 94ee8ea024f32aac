"""How far a consumer group has come, seen from outside the group."""

from __future__ import annotations

from kafka import KafkaConsumer, TopicPartition
from kafka import errors as kafka_errors

from shared.adapters.kafka_client import TopicAdmin, connected, unavailable
from shared.adapters.settings import KafkaSettings


class GroupLag:
    """Committed offsets of a group on a topic. It never joins the group. Not for use by several threads."""

    def __init__(self, settings: KafkaSettings, group: str, topic: str) -> None:
        """Raises Unavailable."""
        self._settings = settings
        self._topic = topic
        self._consumer = connected(KafkaConsumer, settings, group_id=group, enable_auto_commit=False)
        self._admin = TopicAdmin(settings)

    def lag(self) -> int:
        """Records of all partitions that the group has not committed yet. Raises TopicMissing, Unavailable."""
        try:
            numbers = self._admin.describe(self._topic)[1]  # the consumer's own may lack those of the last five minutes
            partitions = [TopicPartition(self._topic, number) for number in numbers]
            ends = self._consumer.end_offsets(partitions)
            # A group that has committed nothing begins at the start of what the broker still keeps.
            firsts = self._consumer.beginning_offsets(partitions)
            done = {tp: self._consumer.committed(tp) for tp in partitions}
        except (kafka_errors.KafkaError, OSError, KeyError) as error:  # KeyError: a partition without a leader
            raise unavailable(self._settings, error) from error
        return sum(max(0, ends[tp] - (firsts[tp] if done[tp] is None else int(done[tp]))) for tp in partitions)

    def close(self) -> None:
        """Close the connection."""
        self._consumer.close(autocommit=False)
        self._admin.close()
