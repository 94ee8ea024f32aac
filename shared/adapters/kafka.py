"""Kafka through kafka-python: the interactions source, the publisher, and a plain reader."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka import errors as kafka_errors
from kafka.consumer.fetcher import Fetcher
from kafka.consumer.subscription_state import ConsumerRebalanceListener
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.structs import OffsetAndMetadata

from shared.adapters.kafka_client import TopicAdmin, connected, unavailable
from shared.adapters.kafka_group import Membership
from shared.adapters.settings import ConsumerSettings, KafkaSettings
from shared.core.errors import TooLarge, TopicMissing, TopicRecreated, Unavailable
from shared.core.ports import Headers, Polled, Publisher, Record
from shared.core.progress import has_id

log = logging.getLogger(__name__)

_FETCH_BYTES = 8 << 20
"""Fetched from one partition at once, at most; together with the number of partitions it bounds our memory."""
_LINGER_MS = 2
_LINGER_EMBEDDED_MS = 20
"""The embedded broker answers a fetch with one batch of a partition, found by a walk over all that it holds: it keeps
up only where batches are few."""
_LOST_S = 5.0
"""How long a broker has to say where its log was lost."""
_SAME_LIFE_S = 0.5
"""Where topics have no ids, all that the broker can tell is that a topic is gone: asked only so often."""


def _keeping_epochs(parse: Callable[..., Any]) -> Callable[..., Any]:
    """kafka-python 3.0.12 gives a position the leader epoch of what was fetched there, and no epoch where that was
    nothing: from then on it would not notice that the broker lost what came before."""

    @functools.wraps(parse)
    def keeping(fetcher: Any, completed: Any) -> Any:
        fetched = parse(fetcher, completed)
        if fetched is not None and fetched.leader_epoch < 0:
            state = fetcher._subscriptions.assignment.get(fetched.topic_partition)
            if state is not None and state.has_valid_position:
                fetched.leader_epoch = state.position.leader_epoch
        return fetched

    return keeping


Fetcher._parse_fetched_data = _keeping_epochs(Fetcher._parse_fetched_data)


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    """Holds new partitions back until their start position is known. It is called in kafka-python's own thread, while
    ``poll`` waits: what blocks there raises RuntimeError."""

    def __init__(self, source: KafkaInteractionSource) -> None:
        self._source = source

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Called inside poll."""
        self._source.note_assigned(list(assigned))

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Called inside poll, before the partitions are given to another."""
        self._source.note_revoked(list(revoked), listening=True)

    def on_partitions_lost(self, lost: Iterable[TopicPartition]) -> None:
        """Called inside poll when another may already own them."""
        self._source.note_revoked(list(lost), listening=True)


class KafkaInteractionSource:
    """The InteractionSource port. Not for use by several threads."""

    def __init__(self, kafka: KafkaSettings, consumer: ConsumerSettings) -> None:
        self.topic = kafka.topic_interactions
        self._kafka = kafka
        self._linger_s = consumer.consumer_linger_ms / 1000
        self._admin = TopicAdmin(kafka)
        self._described: tuple[str, list[int]] = ("", [])
        self._described_until = 0.0
        self._assigned: set[int] = set()
        self._revoked: set[int] = set()
        self._held: set[int] = set()
        self._listening = False
        self._without_epochs: set[tuple[int, int]] = set()
        self._epochs = not kafka.kafka_api_version  # the embedded broker has one leader for ever
        self.on_revoke: Callable[[frozenset[int]], None] | None = None
        self._consumer = connected(
            KafkaConsumer,
            kafka,
            group_id=consumer.consumer_group,
            group_instance_id=consumer.consumer_instance_id or None,
            enable_auto_commit=False,
            # "none": a position outside the log is our business, for it may mean that the topic was made anew.
            auto_offset_reset="none",
            partition_assignment_strategy=(CooperativeStickyAssignor,),
            session_timeout_ms=consumer.consumer_session_timeout_ms,
            heartbeat_interval_ms=consumer.consumer_session_timeout_ms // 4,
            # The embedded broker answers a waiting fetch at the end of its wait only: no longer than polls linger.
            fetch_max_wait_ms=max(10, consumer.consumer_linger_ms) if kafka.kafka_api_version else 100,
            max_partition_fetch_bytes=_FETCH_BYTES,
            max_poll_records=consumer.consumer_max_batch,
            metadata_max_age_ms=10_000,
        )
        self._membership = Membership(self._consumer, kafka, consumer.consumer_group, self.topic, _Listener(self))

    def note_assigned(self, partitions: list[TopicPartition]) -> None:
        """From the rebalance listener."""
        if not partitions:
            return
        for tp in partitions:
            self._consumer.seek(tp, 0)  # any position: it keeps kafka-python from looking for a committed one
        self._consumer.pause(*partitions)
        self._assigned |= {tp.partition for tp in partitions}

    def note_revoked(self, partitions: list[TopicPartition], listening: bool = False) -> None:
        """listening: from the rebalance listener."""
        numbers = frozenset(tp.partition for tp in partitions)
        self._listening = listening
        try:
            if numbers and self.on_revoke is not None:
                self.on_revoke(numbers)
        finally:
            self._listening = False
            self._assigned -= numbers
            self._held -= numbers
            self._revoked |= numbers

    def poll(self, timeout_s: float, max_records: int) -> Polled:
        """See InteractionSource. New partitions bring no records before ``seek``."""
        if self._membership.look():
            self.note_revoked(list(self._consumer.assignment()))
            self._assigned.clear()
            self._membership.rejoin()
        records: defaultdict[int, list[Record]] = defaultdict(list)
        count = 0
        deadline = time.monotonic() + timeout_s
        while True:
            left_ms = max(0, round((deadline - time.monotonic()) * 1000))
            for tp, batch in self._poll(left_ms, max_records - count).items():
                records[tp.partition] += batch
                if not count:
                    deadline = min(deadline, time.monotonic() + self._linger_s)
                count += len(batch)
            if count >= max_records or self._assigned or self._revoked or time.monotonic() >= deadline:
                break
        polled = Polled(records, frozenset(self._assigned), frozenset(self._revoked))
        self._assigned, self._revoked = set(), set()
        return polled

    def _poll(self, timeout_ms: int, max_records: int) -> dict[TopicPartition, list[Record]]:
        try:
            return self._consumer.poll(timeout_ms, max_records=max_records)  # type: ignore[no-any-return]
        except kafka_errors.LogTruncationError as error:
            raise self._lost_end(error) from error
        except (kafka_errors.OffsetOutOfRangeError, kafka_errors.NoOffsetForPartitionError) as error:
            raise TopicRecreated(f"topic {self.topic}: our position is outside the log: {error}") from error
        except kafka_errors.UnknownTopicOrPartitionError as error:
            raise TopicMissing(f"Kafka at {self._kafka.kafka_bootstrap_servers} has no topic {self.topic!r}") from error
        except (kafka_errors.KafkaError, OSError) as error:
            raise unavailable(self._kafka, error) from error

    def _lost_end(self, error: kafka_errors.LogTruncationError) -> TopicRecreated:
        self._cuts(error)
        return TopicRecreated(f"topic {self.topic}: the broker lost the end of its log: {error}")

    def hold(self) -> None:
        """Bring no records until ``release``; polling goes on, so that the group keeps us."""
        running = self._consumer.assignment() - self._consumer.paused()
        if running:
            self._consumer.pause(*running)
            self._held |= {tp.partition for tp in running}

    def release(self) -> None:
        """End ``hold``."""
        back = [TopicPartition(self.topic, p) for p in self._held]
        owned = self._consumer.assignment()
        self._held = set()
        if back := [tp for tp in back if tp in owned]:
            self._consumer.resume(*back)

    def incarnations(self, partitions: Sequence[int]) -> dict[int, str]:
        """See InteractionSource."""
        if time.monotonic() >= self._described_until:
            self._described = self._admin.describe(self.topic)
            if not has_id(self._described[0]):
                self._described_until = time.monotonic() + _SAME_LIFE_S
        life, existing = self._described
        return dict.fromkeys([p for p in partitions if p in existing], life)

    def bounds(self, partitions: Sequence[int]) -> dict[int, tuple[int, int]]:
        """See InteractionSource."""
        tps = [TopicPartition(self.topic, p) for p in partitions]
        try:
            first = self._consumer.beginning_offsets(tps, timeout_ms=5000)
            end = self._consumer.end_offsets(tps, timeout_ms=5000)
        except (kafka_errors.KafkaError, OSError, KeyError) as error:  # KeyError: a partition that is gone
            raise unavailable(self._kafka, error) from error
        return {tp.partition: (first[tp], end[tp]) for tp in tps}

    def lost_from(self, partition: int, offset: int, epoch: int) -> int | None:
        """See InteractionSource."""
        tp = TopicPartition(self.topic, partition)
        if epoch < 0 or tp not in self._consumer.assignment():
            return None
        cuts: dict[int, int] = {}
        self._consumer.pause(tp)
        self._seek(tp, offset, epoch)
        # kafka-python asks the broker only where its own metadata tell of a new leader epoch, and those may be older
        # than the loss.
        positions = self._consumer._subscription
        asked = positions.request_position_validation(tp)
        deadline = time.monotonic() + _LOST_S
        while asked and partition not in cuts:  # what was found is told by the call after, or along with others'
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"Kafka at {self._kafka.kafka_bootstrap_servers} did not say where leader epoch {epoch} of"
                    f" partition {partition} of {self.topic} ended"
                )
            asked = positions.is_offset_validation_needed(tp)
            try:
                self._consumer.position(tp, timeout_ms=5000)
            except kafka_errors.LogTruncationError as error:
                cuts |= self._cuts(error)
            except (kafka_errors.KafkaError, OSError) as error:
                raise unavailable(self._kafka, error) from error
        return cuts.get(partition)

    def _cuts(self, error: kafka_errors.LogTruncationError) -> dict[int, int]:
        """partition -> where its lost part began."""
        cuts: dict[int, int] = {}
        states = self._consumer._subscription.assignment
        for tp, place in error.divergent_offsets.items():
            if place is not None:
                cuts[tp.partition] = place.offset
            elif tp in states and states[tp].has_valid_position:
                # The broker knows nothing of that epoch, and would say so again and again.
                self._without_epochs.add((tp.partition, states[tp].position.leader_epoch))
        return cuts

    def seek(self, partition: int, offset: int, epoch: int = -1) -> None:
        """See InteractionSource."""
        tp = TopicPartition(self.topic, partition)
        if tp in self._consumer.assignment():
            self._consumer.pause(tp)
            self._forget_fetched(tp)
            self._seek(tp, offset, epoch)
            self._consumer.resume(tp)

    def _forget_fetched(self, tp: TopicPartition) -> None:
        """kafka-python hands out what it has fetched ahead wherever the offset fits, also of another topic that had the
        same name: it asks for records by name."""
        fetcher = self._consumer._fetcher
        fetcher._paused_completed_fetches.pop(tp, None)
        fetcher._paused_partition_records.pop(tp, None)
        if fetcher._next_partition_records is not None and fetcher._next_partition_records.topic_partition == tp:
            fetcher._next_partition_records = None
        for fetched in [fetched for fetched in fetcher._completed_fetches.copy() if fetched.topic_partition == tp]:
            fetcher._completed_fetches.remove(fetched)

    def _seek(self, tp: TopicPartition, offset: int, epoch: int) -> None:
        self._consumer.seek(tp, offset)
        if epoch >= 0 and self._epochs and (tp.partition, epoch) not in self._without_epochs:
            # kafka-python checks positions against the leaders' epochs (KIP-320), but its own seek takes none.
            self._consumer._subscription.assignment[tp].seek(OffsetAndMetadata(offset, "", epoch))

    def commit(self, offsets: Mapping[int, int]) -> None:
        """See InteractionSource. Not while a rebalance waits for us: it would wait, too, and nothing starts from it."""
        if self._listening:
            return
        wanted = {TopicPartition(self.topic, p): OffsetAndMetadata(o, "", -1) for p, o in offsets.items()}
        try:
            self._consumer.commit(wanted, timeout_ms=5000)
        except (kafka_errors.CommitFailedError, kafka_errors.RebalanceInProgressError) as error:
            log.info("commit of %s %s left to the new owner: %s", self.topic, dict(offsets), error)
        except kafka_errors.FencedInstanceIdError as error:
            raise Unavailable(
                f"Kafka at {self._kafka.kafka_bootstrap_servers}: another consumer has joined the group under our name:"
                " each needs a CONSUMER_INSTANCE_ID of its own"
            ) from error
        except (kafka_errors.KafkaError, OSError) as error:
            # The progress in Redis is what we start from: a commit that fails costs nothing but an outdated lag.
            log.warning("commit of %s %s failed: %s", self.topic, dict(offsets), error)

    def lag(self) -> dict[int, int]:
        """See InteractionSource."""
        lag: dict[int, int] = {}
        states = self._consumer._subscription.assignment  # kafka-python's own answers may wait for the broker
        for tp, state in list(states.items()):
            if state.highwater is not None and state.has_valid_position and not state.paused:
                lag[tp.partition] = max(0, state.highwater - state.position.offset)
        return lag

    def close(self) -> None:
        """See InteractionSource."""
        self._consumer.close(autocommit=False, timeout_ms=5000)
        self._membership.close()
        self._admin.close()


_TOO_LARGE = (kafka_errors.MessageSizeTooLargeError, kafka_errors.RecordListTooLargeError)


class KafkaPublisher:
    """The Publisher port: acks=all, idempotent."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._failed: list[Exception] = []
        self._producer = connected(
            KafkaProducer,
            settings,
            acks="all",
            linger_ms=_LINGER_EMBEDDED_MS if settings.kafka_api_version else _LINGER_MS,
            # An acknowledgement may be lost with a broker; the delivery is tried again for so long.
            delivery_timeout_ms=60_000,
            request_timeout_ms=10_000,
            max_block_ms=10_000,
            max_request_size=settings.kafka_max_message_bytes,
        )

    def send(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Headers = (), partition: int | None = None
    ) -> None:
        """See Publisher."""
        try:
            future = self._producer.send(topic, value=value, key=key, headers=list(headers), partition=partition)
        except (kafka_errors.KafkaError, OSError, AssertionError, ValueError) as error:
            raise self._unavailable(error) from error
        future.add_errback(self._failed.append)

    def flush(self, timeout_s: float) -> None:
        """See Publisher."""
        try:
            self._producer.flush(timeout=timeout_s)
        except (kafka_errors.KafkaError, OSError) as error:
            raise unavailable(self._settings, error) from error
        if self._failed:
            failed, self._failed = self._failed, []
            # Where one is too large, the producer gives up on all that come after it: their errors tell less.
            why = next((error for error in failed if isinstance(error, _TOO_LARGE)), failed[0])
            raise self._unavailable(why) from why

    def _unavailable(self, error: Exception) -> Unavailable:
        if isinstance(error, _TOO_LARGE):
            return TooLarge(f"Kafka at {self._settings.kafka_bootstrap_servers}: {type(error).__name__}: {error}")
        return unavailable(self._settings, error)

    def close(self) -> None:
        """See Publisher. Never raises; what is not acknowledged within five seconds is given up."""
        try:
            self._producer.close(timeout=5)
        except (kafka_errors.KafkaError, OSError) as error:
            # kafka-python 3.0.12 waits for what is in hand first, and where that fails leaves its thread at work.
            log.warning("given up what Kafka has not acknowledged: %s", error)
            self._producer._sender.force_close()


class RenewedPublisher:
    """The Publisher port: a publisher that is made anew after each failure. For one that sends again what failed.

    An idempotent producer of kafka-python takes an error that is not worth a retry (no right to write, a record that
    is too large) for the end: it refuses all that comes after it, also when the reason is gone.
    """

    def __init__(self, connect: Callable[[], Publisher]) -> None:
        """connect: makes one. Raises Unavailable, in the call that needs it."""
        self._connect = connect
        self._publisher: Publisher | None = None

    def send(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Headers = (), partition: int | None = None
    ) -> None:
        """See Publisher. After an error other than TooLarge, all that was sent since the last flush is gone."""
        try:
            self._ready().send(topic, key, value, headers, partition)
        except TooLarge:
            raise
        except Unavailable:
            self._discard()
            raise

    def flush(self, timeout_s: float) -> None:
        """See Publisher. After an error, all that was sent since the last flush is gone."""
        try:
            self._ready().flush(timeout_s)
        except Unavailable:
            self._discard()
            raise

    def close(self) -> None:
        """See Publisher."""
        self._discard()

    def _ready(self) -> Publisher:
        if self._publisher is None:
            self._publisher = self._connect()
        return self._publisher

    def _discard(self) -> None:
        publisher, self._publisher = self._publisher, None
        if publisher is not None:
            with contextlib.suppress(Unavailable):
                publisher.close()
