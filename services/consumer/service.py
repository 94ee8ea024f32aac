"""The consumer's loop: poll, apply, and from time to time make the progress durable.

A commit happens in this order, and any of its steps may be the last one before a crash:

    1. states are in Redis (with every batch)
    2. the derived messages and what is known of engagement are acknowledged by Kafka
    3. the partitions' progress is in Redis
    4. the offsets are committed to Kafka

What was done after the last step 3 is read again at the next start, and found to be applied.

While one batch is applied, in a thread, the next is polled. When a system fails, all partitions go back to the
progress that Redis holds and are read from there as soon as the system answers: one way out of every trouble, and
memory never holds more than two batches and what kafka-python has fetched ahead.
"""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait

from services.consumer.batch import BatchProcessor
from services.consumer.metrics import ConsumerMetrics
from services.consumer.partitions import Partitions
from shared.core.errors import DriftwoodError, TooLarge, TopicMissing, TopicRecreated, Unavailable
from shared.core.ports import InteractionSource, Polled, Publisher
from shared.core.waiting import poll_without_records

log = logging.getLogger(__name__)

_BACKOFF_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
_REVOKE_WAIT_S = 5.0
"""How long a rebalance waits for the batch in hand. Past it the new owner reads the batch again: harmless."""
_FLUSH_S = 30.0
_STORE_LOOK_S = 5.0
"""How often the state store is asked how full it is: half a millisecond each time."""
_JOIN_S = 15.0
"""After so long without partitions, a member is a spare one: a dead member's are free after 10 s."""


class ConsumerService:
    """Runs until ``stop`` is called, or, with ``run(until_idle=True)``, until a poll brings nothing."""

    def __init__(
        self,
        source: InteractionSource,
        partitions: Partitions,
        batches: BatchProcessor,
        publisher: Publisher,
        metrics: ConsumerMetrics,
        max_batch: int,
        commit_s: float,
        poll_s: float = 0.2,
    ) -> None:
        self._source = source
        self._partitions = partitions
        self._batches = batches
        self._publisher = publisher
        self._metrics = metrics
        self._max_batch = max_batch
        self._commit_s = commit_s
        self._poll_s = poll_s
        self._stop = threading.Event()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="batch")
        self._inflight: Future[None] | None = None
        self._committed_at = time.monotonic()
        self._started_at = time.monotonic()
        self._looked_at = float("-inf")
        self._to_take: set[int] = set()
        self._to_drop: set[int] = set()
        self._rewind: str | None = None
        self._failures = 0
        self.turned_at = time.monotonic()
        """When the loop last came round, by time.monotonic()."""
        self.problem: str | None = "starting"
        """What keeps the consumer from working, None while it works."""
        source.on_revoke = self._on_revoke

    def stop(self) -> None:
        """Finish the batch in hand, commit, and return from ``run``. Safe to call from a signal handler."""
        self._stop.set()

    def run(self, until_idle: bool = False) -> None:
        """The loop. Errors that waiting can heal are waited out; others end it."""
        try:
            while not self._stop.is_set():
                if self.step() and until_idle:
                    break
            self._finish()
        finally:
            self._worker.shutdown(wait=True)

    def step(self) -> bool:
        """One turn of the loop; whether there was nothing to do."""
        self.turned_at = time.monotonic()
        try:
            idle = self._turn()
        except (Unavailable, TopicMissing, TopicRecreated) as error:
            self._fail(error)
            return False
        # A member without partitions is ready as well, where there are more members than partitions.
        joined = self._partitions.owned or time.monotonic() - self._started_at > _JOIN_S
        self._failures, self.problem = 0, None if joined else "joining the consumer group"
        return idle

    def _turn(self) -> bool:
        """One poll and what follows from it; whether there was nothing to do."""
        if self._rewind is not None:
            self._metrics.rewinds.labels(self._rewind).inc()
            self._partitions.restart()
            self._rewind = None
        polled = self._source.poll(self._poll_s, self._max_batch)
        self._note(polled)
        self._settle()
        took = self._rebalanced()
        if self._rewind is not None:
            return False  # found while polling: what was polled does not follow on what is stored
        # What came for a partition before it was taken over does not follow on its place either.
        records = {number: batch for number, batch in polled.records.items() if number not in took}
        if records:
            if self._partitions.topic_changed():
                raise TopicRecreated(f"topic {self._source.topic} was deleted and made again")
            owned, server_id = self._partitions.owned, self._partitions.server_id
            self._inflight = self._worker.submit(self._batches.run, records, owned, self._source.topic, server_id)
        if time.monotonic() - self._committed_at >= self._commit_s:
            self._settle()
            self._commit()
        return not polled.records and not took and self._rewind is None

    def _note(self, polled: Polled) -> None:
        """What came and went is told once: whatever fails from here on, it must not be forgotten."""
        self._to_drop |= polled.revoked
        self._to_take = (self._to_take - polled.revoked) | polled.assigned

    def _drop_noted(self) -> None:
        self._partitions.drop(self._to_drop)
        self._to_drop.clear()

    def _rebalanced(self) -> frozenset[int]:
        """Drop and take what was noted, with no batch in hand; those taken."""
        self._drop_noted()
        took = frozenset(self._to_take)
        if took:
            self._partitions.take(took)
            took &= self._partitions.owned.keys()  # a broker that is behind may not know of all of them yet
            self._to_take -= took
        self._metrics.partitions.set(len(self._partitions.owned))
        return took

    def _settle(self) -> None:
        """Wait for the batch in hand. Raises what it raised."""
        if self._inflight is not None:
            inflight, self._inflight = self._inflight, None
            inflight.result()

    def _commit(self, last: bool = False) -> None:
        """last: the partitions go to another, so that what is being scored is waited for."""
        self._committed_at = time.monotonic()
        if self._rewind is not None:
            return  # what is in hand is void
        self._batches.engagement.publish(self._publisher, self._partitions.owned, last)
        self._publisher.flush(_FLUSH_S)
        # kafka-python waits in silence for a broker or a topic that is not there: so ask.
        if self._partitions.topic_changed():
            raise TopicRecreated(f"topic {self._source.topic} was deleted and made again")
        if self._partitions.server_changed():
            log.warning("Redis was restarted: reading again from the progress that it holds")
            self._rewind = "redis"
            return
        offsets, lost = self._partitions.save()
        if lost:
            self._rewind = "revoke"  # another owner was faster: all start again from what is stored
        self._batches.engagement.refresh(self._partitions.owned)
        if offsets:
            self._source.commit(offsets)
        self._metrics.lags(self._source.lag())
        if self._committed_at >= self._looked_at + _STORE_LOOK_S:
            self._looked_at = self._committed_at
            self._metrics.store_memory(self._partitions.store_memory())
        if not lost:
            self._metrics.committed.set_to_current_time()

    def _on_revoke(self, partitions: frozenset[int]) -> None:
        """Called inside poll: hand the partitions over as tidily as a short wait allows."""
        try:
            if self._inflight is not None:
                wait([self._inflight], timeout=_REVOKE_WAIT_S)
                if not self._inflight.done():
                    return
                self._settle()
            self._commit(last=True)
        except DriftwoodError as error:
            self._rewind = "revoke"
            log.warning("partitions handed over without a commit: %s", error, extra={"partitions": sorted(partitions)})

    def _fail(self, error: DriftwoodError) -> None:
        """Say what is wrong and wait, polling without records, so that the group does not take us for dead."""
        self.problem = str(error)
        self._rewind = "Unavailable" if isinstance(error, Unavailable) else type(error).__name__
        if isinstance(error, TooLarge):
            self._batches.cut_letters()  # of all that we write, only dead letters are as large as others made them
        pause = _BACKOFF_S[min(self._failures, len(_BACKOFF_S) - 1)]
        self._failures += 1
        log.error("%s; trying again in %.2f s", error, pause, extra={"attempt": self._failures})
        if self._inflight is not None:
            wait([self._inflight])
            self._inflight = None
        if isinstance(error, TopicRecreated):
            return
        self._note(poll_without_records(self._source, pause, self._stop))
        self._drop_noted()

    def _finish(self) -> None:
        """The orderly end: what was applied is committed, then the group is left."""
        try:
            self._settle()
            self._commit(last=True)
        except DriftwoodError as error:
            log.error("stopping without a last commit, the next owner reads a little again: %s", error)
        self._source.close()
