"""Scores, beside the stream, what users did next against the rankings that were held for them.

The batch thread hands in what a batch came to (a lot) with the moments of its sampled events. A thread of its own
ranks the chosen items, a few states at a time. At each commit, what is scored so far, in the order of the log, goes
out before the commit's flush: so offsets that are committed were reported or are given up, and never reported twice
but for a crash between the flush and the commit, which readers see by the offsets.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np

from services.consumer.advance import Moment, Wanted
from services.consumer.metrics import ConsumerMetrics
from services.consumer.partitions import Partition
from services.consumer.sampling import SampleRate
from services.consumer.spans import Lot, Source, merged
from shared.core.dismissed import unpack_dismissed
from shared.core.engagement import CUTOFF, SERVED, EngagementBatch, encode_engagement
from shared.core.errors import StateDamaged
from shared.core.ports import Publisher
from shared.core.trending import Trending
from shared.model.inference import InferenceModel
from shared.model.rank import ROWS, ranks

log = logging.getLogger(__name__)

_GATHER_S = 0.1
"""Moments of so long are scored together: 32 at once cost a third of 32 alone."""

_LAST_WAIT_S = 1.0

_POPULAR = 200
"""Trending items looked at: a ranking of 20, and as many as a user can have dismissed."""


class Engagement:
    """Not started, it scores when its report is asked for: for tests, and for replays."""

    def __init__(
        self,
        rate: SampleRate,
        topic: str,
        metrics: ConsumerMetrics,
        half_life_s: float,
    ) -> None:
        self._rate = rate
        self._topic = topic
        self._metrics = metrics
        self._half_life_s = half_life_s
        self._lots: deque[Lot] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._waiting = 0
        self._cold = True
        self.popular: Mapping[str, int] = {}
        """Item -> place among the trending ones, from 0: what a user without a state is offered now."""
        self._thread = threading.Thread(target=self._run, name="engagement", daemon=True)

    def start(self) -> None:
        """Begin to score in the background."""
        self._thread.start()

    def stop(self) -> None:
        """Score no more."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def wanted(self, events: int, model: InferenceModel | None, unknown: bool = False) -> Wanted:
        """The moments to take in a batch of so many events; unknown: also all on items that the model does not know."""
        weights = model.embedding.numel() if model is not None else 0
        return Wanted(self._rate.threshold(events, self._waiting, weights), unknown)

    def add(self, lot: Lot) -> None:
        """Take what a batch came to. Never waits: where too much waits already, its moments go unscored."""
        self._cold = self._cold or lot.cold()
        with self._changed:
            if self._waiting + len(lot.moments) > 2 * self._rate.backlog():
                lot.moments = ()
            self._waiting += len(lot.moments)
            self._lots.append(lot)
            self._changed.notify_all()
        self._metrics.engagement_rate.set(self._rate.rate)

    def refresh(self, owned: Mapping[int, Partition]) -> None:
        """Look anew at what is trending in these partitions, if it was asked for since the last look."""
        if self._cold:
            self._cold = False
            merged = Trending(self._half_life_s, _POPULAR)
            for part in owned.values():
                landmark, weights = part.trending.snapshot()
                merged.merge(landmark, weights[:_POPULAR])
            self.popular = {item: place for place, (item, _) in enumerate(merged.top(_POPULAR))}

    def publish(self, publisher: Publisher, owned: Mapping[int, Partition], last: bool = False) -> None:
        """Send what was scored since the last time. last: wait a moment for what is not. Raises Unavailable."""
        for batch in self.report(owned, _LAST_WAIT_S if last else 0.0):
            publisher.send(self._topic, batch.model_version.encode(), encode_engagement(batch))
            self._count(batch)

    def report(self, owned: Mapping[int, Partition], patience_s: float = 0.0) -> list[EngagementBatch]:
        """The outcomes of all lots up to the first that is not scored yet."""
        if not self._thread.is_alive():
            self._score_waiting()
        with self._changed:
            if patience_s:
                self._changed.wait_for(lambda: not self._waiting, patience_s)
            done: list[Lot] = []
            while self._lots and (self._lots[0].scored or not self._lots[0].moments):
                done.append(self._lots.popleft())
        batches, left_out = merged(done, owned)
        self._metrics.engagement_skipped.labels("overtaken").inc(left_out)
        return batches

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stopping)
                if self._stopping:
                    return
            time.sleep(_GATHER_S)
            self._score_waiting()

    def _score_waiting(self) -> None:
        with self._changed:
            lots = [lot for lot in self._lots if lot.moments and not lot.scored]
        if not lots:
            return
        try:
            self._score(lots)
        except Exception:
            # The stream goes on whatever happens here; these moments stay unscored.
            log.exception("engagement could not be scored")
        with self._changed:
            for lot in lots:
                self._waiting -= len(lot.moments)
                lot.scored, lot.moments = True, ()
            self._changed.notify_all()

    def _score(self, lots: Sequence[Lot]) -> None:
        started = time.perf_counter()
        ranked: dict[str, tuple[InferenceModel, list[tuple[Lot, Moment]]]] = {}
        for lot in lots:
            for moment in lot.moments:
                fresh = moment.fresh
                source = lot.source(fresh)
                if lot.model is not None and moment.hidden is not None and fresh.warm and fresh.item >= 0:
                    ranked.setdefault(lot.model.version, (lot.model, []))[1].append((lot, moment))
                elif lot.model is not None and fresh.warm:
                    _note(lot, moment, source, 0)  # an item that no ranking of this model holds
                else:
                    _note(lot, moment, source, _trending_rank(moment, lot.popular))
        for model, asked in ranked.values():
            for at in range(0, len(asked), ROWS):
                self._rank(model, asked[at : at + ROWS])
        self._rate.scored(sum(len(lot.moments) for lot in lots), time.perf_counter() - started)

    def _rank(self, model: InferenceModel, asked: Sequence[tuple[Lot, Moment]]) -> None:
        hidden = np.stack([moment.hidden for _, moment in asked if moment.hidden is not None])  # (B, D)
        left_out = [model.known(_dismissed(moment)) for _, moment in asked]
        found = ranks(model, hidden, [moment.fresh.item for _, moment in asked], left_out)
        for (lot, moment), rank in zip(asked, found, strict=True):
            _note(lot, moment, lot.source(moment.fresh), rank)

    def _count(self, batch: EngagementBatch) -> None:
        metrics, labels = self._metrics, (batch.model_version or "none", batch.strategy)
        metrics.engagement_scored.labels(*labels).inc(batch.count)
        metrics.engagement_reciprocal_rank.labels(*labels).inc(batch.reciprocal_rank)
        for k, hits in batch.hits.items():
            metrics.engagement_hits.labels(*labels, k).inc(hits)
        metrics.engagement_skipped.labels("sampled").inc(max(0, batch.seen - batch.count))
        for kind in SERVED:
            metrics.served.labels(kind).inc(batch.served[kind])


def _note(lot: Lot, moment: Moment, source: Source, rank: int) -> None:
    event = moment.fresh.event
    lot.spans[event.partition].outcomes[source].append((event.offset, rank if rank <= CUTOFF else 0))


def _dismissed(moment: Moment) -> list[str]:
    """Items that were not to be offered to the user at the event's time."""
    if not moment.fresh.dismissed:
        return []
    now_s = moment.fresh.event.ts // 1000
    try:
        return [item for item, until in unpack_dismissed(moment.fresh.dismissed) if until > now_s]
    except StateDamaged as error:
        log.error("%s", error, extra={"user_id": moment.fresh.event.user_id})
        return []


def _trending_rank(moment: Moment, places: Mapping[str, int]) -> int:
    """Rank among the trending items without those dismissed; 0: not among them."""
    item, out = moment.fresh.event.item_id, _dismissed(moment)
    place = places.get(item)
    if place is None or item in out:
        return 0
    return 1 + place - sum(places.get(other, place) < place for other in set(out))
