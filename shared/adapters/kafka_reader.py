"""Kafka topics beside the interactions: made, and read by a group that commits when it says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka import errors as kafka_errors
from kafka.admin import NewTopic
from kafka.structs import OffsetAndMetadata

from shared.adapters.kafka_client import abandon, bounded, connected, unavailable
from shared.adapters.kafka_group import Membership
from shared.adapters.settings import KafkaSettings
from shared.core.errors import NotAllowed, Unavailable
from shared.core.ports import Record


def topic_configs(settings: KafkaSettings) -> dict[str, dict[str, str]]:
    """Every topic of ours and the settings that it is made with."""
    # Of three copies two must have a record before it counts as written: by itself Kafka is content with the leader's.
    safe = {"min.insync.replicas": "2"} if settings.kafka_replication >= 3 else {}
    big = {"max.message.bytes": str(settings.kafka_max_message_bytes)}
    configs = {
        settings.topic_interactions: {"retention.ms": str(30 * 86_400_000), **big},
        settings.topic_recommendations: {"cleanup.policy": "compact"},
        settings.topic_engagement: {"retention.ms": str(30 * 86_400_000)},
        settings.topic_state_updates: {"retention.ms": str(86_400_000), **big},
        settings.topic_dlq: {"retention.ms": str(30 * 86_400_000), **big},
        settings.topic_forgets: {"cleanup.policy": "compact"},
    }
    return {name: config | safe for name, config in configs.items()}


_REFUSED = (kafka_errors.TopicAuthorizationFailedError, kafka_errors.ClusterAuthorizationFailedError)


def ensure_topics(settings: KafkaSettings) -> list[str]:
    """Make the topics that do not exist; returns their names. Existing ones are left as they are.

    The embedded broker cannot be asked to: it makes topics by itself. Raises Unavailable, NotAllowed.
    """
    if settings.kafka_api_version:
        return []
    made = []
    try:
        admin = connected(KafkaAdminClient, settings, request_timeout_ms=10_000)
        try:
            have = set(admin.list_topics())
            for name, configs in topic_configs(settings).items():
                if name in have:
                    continue
                try:
                    admin.create_topics(
                        [NewTopic(name, settings.kafka_partitions, settings.kafka_replication, topic_configs=configs)]
                    )
                    made.append(name)
                except kafka_errors.TopicAlreadyExistsError:
                    continue
                except _REFUSED as error:
                    who = settings.kafka_sasl_username or settings.kafka_ssl_certfile or "we"
                    raise NotAllowed(
                        f"Kafka at {settings.kafka_bootstrap_servers}: {who} may not make the topic {name} (operation"
                        f" Create): {type(error).__name__}"
                    ) from error
        finally:
            admin.close()
    except (kafka_errors.KafkaError, OSError) as error:
        raise unavailable(settings, error) from error
    return made


class KafkaReader:
    """Reads one topic in a consumer group: poll, work, commit."""

    def __init__(self, settings: KafkaSettings, topic: str, group: str) -> None:
        """Raises Unavailable."""
        self._settings = settings
        self._topic = topic
        self._consumer = connected(
            KafkaConsumer,
            settings,
            group_id=group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            session_timeout_ms=10_000,
            fetch_max_wait_ms=100,
            metadata_max_age_ms=10_000,
        )
        self._membership = Membership(self._consumer, settings, group, topic)

    def poll(self, timeout_s: float, max_records: int) -> list[Record]:
        """The next records, in offset order within each partition. Raises TopicMissing, Unavailable."""
        if self._membership.look():
            self._membership.rejoin()
        try:
            polled = self._consumer.poll(round(timeout_s * 1000), max_records=max_records)
        except (kafka_errors.KafkaError, OSError) as error:
            raise unavailable(self._settings, error) from error
        return [record for records in polled.values() for record in records]

    def commit(self, records: Sequence[Record]) -> None:
        """Never again these records, nor those before them. Raises Unavailable."""
        offsets: dict[TopicPartition, int] = {}
        for record in records:
            tp = TopicPartition(self._topic, record.partition)
            offsets[tp] = max(offsets.get(tp, 0), record.offset + 1)
        self._commit(offsets)

    def _commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        try:
            self._consumer.commit({tp: OffsetAndMetadata(o, "", -1) for tp, o in offsets.items()}, timeout_ms=5000)
        except (kafka_errors.CommitFailedError, kafka_errors.RebalanceInProgressError):
            return  # the new owner reads them once more: all our uses bear it
        except (kafka_errors.KafkaError, OSError) as error:
            raise unavailable(self._settings, error) from error

    def rewind(self, records: Sequence[Record]) -> None:
        """Read these records again."""
        first: dict[int, int] = {}
        for record in records:
            first[record.partition] = min(first.get(record.partition, record.offset), record.offset)
        for partition, offset in first.items():
            tp = TopicPartition(self._topic, partition)
            if tp in self._consumer.assignment():
                self._consumer.seek(tp, offset)

    def close(self) -> None:
        """Leave the group."""
        self._consumer.close(autocommit=False, timeout_ms=5000)
        self._membership.close()


class OffsetReader:
    """End offsets of a topic, asked of the broker now. Safe to share between threads only under a lock."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._consumer: KafkaConsumer | None = None

    def end_offsets(self, topic: str, partitions: Sequence[int] | None = None) -> dict[int, int]:
        """partition -> the next offset to be written. Raises Unavailable.

        partitions: of all these; None: of those that the client knows, which may lack any of the last ten seconds.
        """
        try:
            ends = bounded(self._settings, lambda: self._ask(topic, partitions))
        except Unavailable:
            hangs, self._consumer = self._consumer, None
            abandon(hangs)
            raise
        except (kafka_errors.KafkaError, OSError, KeyError) as error:  # KeyError: a partition that is gone
            self.close()
            raise unavailable(self._settings, error) from error
        found = {tp.partition: end for tp, end in ends.items()}
        if missing := sorted(set(partitions or ()) - set(found)):
            address = self._settings.kafka_bootstrap_servers
            raise Unavailable(f"Kafka at {address} did not say where partitions {missing} of {topic} end")
        return found

    def _ask(self, topic: str, partitions: Sequence[int] | None) -> dict[TopicPartition, int]:
        if self._consumer is None:
            self._consumer = connected(
                KafkaConsumer,
                self._settings,
                enable_auto_commit=False,
                request_timeout_ms=10_000,
                metadata_max_age_ms=10_000,
            )
        if partitions is None:
            partitions = list(self._consumer.partitions_for_topic(topic) or ())
        tps = [TopicPartition(topic, p) for p in partitions]
        return dict(self._consumer.end_offsets(tps, timeout_ms=5000))

    def close(self) -> None:
        """Close the connection; the next question opens another."""
        if self._consumer is not None:
            self._consumer.close(autocommit=False)
            self._consumer = None
