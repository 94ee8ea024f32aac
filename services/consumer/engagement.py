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
import torch

from services.consumer.advance import Moment, Wanted
from services.consumer.metrics import ConsumerMetrics
from services.consumer.offers import Corrected, NewRows, OfferBook
from services.consumer.partitions import Partition
from services.consumer.sampling import SampleRate
from services.consumer.spans import Lot, merged
from shared.core.dismissed import unpack_dismissed
from shared.core.engagement import CUTOFF, SERVED, EngagementBatch, encode_engagement
from shared.core.errors import StateDamaged
from shared.core.ports import Publisher
from shared.model.inference import InferenceModel
from shared.model.rank import ROWS, Ranked

log = logging.getLogger(__name__)

_GATHER_S = 0.1
"""Moments of so long are scored together: 32 at once cost a third of 32 alone."""

_LAST_WAIT_S = 1.0


class Engagement:
    """Not started, it scores when its report is asked for: for tests, and for replays."""

    def __init__(
        self,
        rate: SampleRate,
        topic: str,
        metrics: ConsumerMetrics,
        offers: OfferBook,
    ) -> None:
        self._rate = rate
        self._topic = topic
        self._metrics = metrics
        self.offers = offers
        self._lots: deque[Lot] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._waiting = 0
        self._cold = True
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
        """Look anew at what is offered, after a commit; what is trending, only if it was asked for since."""
        cold, self._cold = self._cold, False
        self.offers.look(owned, cold)

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
        started = time.thread_time()
        asked: dict[tuple[int, int, int], list[tuple[Lot, Moment]]] = {}
        for lot in lots:
            for moment in lot.moments:
                if lot.model is not None and moment.fresh.warm:
                    key = (id(lot.model), id(lot.offers.new), id(lot.offers.corrected))
                    asked.setdefault(key, []).append((lot, moment))
                else:
                    _note(lot, moment, _trending_rank(moment, lot.offers.popular, lot.model))
        for moments in asked.values():
            lot = moments[0][0]
            if lot.model is not None:
                _rank(lot.model, lot.offers.new, lot.offers.corrected, moments)
        used_s = (time.thread_time() - started) * torch.get_num_threads()
        self._rate.scored(sum(len(lot.moments) for lot in lots), used_s)
        if lots[-1].model is not None:
            self.offers.make_rows(lots[-1].model)
            self.offers.make_correction(lots[-1].model)

    def _count(self, batch: EngagementBatch) -> None:
        metrics, labels = self._metrics, (batch.model_version or "none", batch.strategy)
        metrics.engagement_scored.labels(*labels).inc(batch.count)
        metrics.engagement_reciprocal_rank.labels(*labels).inc(batch.reciprocal_rank)
        for k, hits in batch.hits.items():
            metrics.engagement_hits.labels(*labels, k).inc(hits)
        metrics.engagement_skipped.labels("sampled").inc(max(0, batch.seen - batch.count))
        for kind in SERVED:
            metrics.served.labels(kind).inc(batch.served[kind])


def _rank(
    model: InferenceModel, new: NewRows | None, corrected: Corrected | None, asked: Sequence[tuple[Lot, Moment]]
) -> None:
    """Rank the chosen items of states of one model; those that neither it nor the new rows hold are misses."""
    if new is not None and new.fingerprint != model.fingerprint:
        new = None
    if corrected is not None and corrected.fingerprint != model.fingerprint:
        corrected = None
    count = len(model.items)
    places = {item: count + row for item, row in new.places.items()} if new is not None else {}

    def index(item: str) -> int:
        return model.index.get(item, places.get(item, -1))

    found: list[tuple[Lot, Moment]] = []
    for lot, moment in asked:
        if moment.hidden is None or index(moment.fresh.event.item_id) < 0:
            _note(lot, moment, 0)
        else:
            found.append((lot, moment))
    ranked = Ranked(model, None if new is None else new.rows, None if corrected is None else corrected.correction)
    for at in range(0, len(found), ROWS):
        part = [moment for _, moment in found[at : at + ROWS]]
        hidden = np.stack([moment.hidden for moment in part if moment.hidden is not None])  # (B, D)
        left_out = [[i for i in (moment.fresh.current, *map(index, _dismissed(moment))) if i >= 0] for moment in part]
        ranks = ranked.ranks(hidden, [index(moment.fresh.event.item_id) for moment in part], left_out)
        for (lot, moment), rank in zip(found[at : at + ROWS], ranks, strict=True):
            _note(lot, moment, rank)


def _note(lot: Lot, moment: Moment, rank: int) -> None:
    event = moment.fresh.event
    outcome = event.offset, rank if rank <= CUTOFF else 0
    lot.spans[event.partition].outcomes[lot.source(moment.fresh)].append(outcome)


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


def _trending_rank(moment: Moment, places: Mapping[str, int], model: InferenceModel | None) -> int:
    """Rank among the trending items, which the catalogue's first follow, without those dismissed; 0: far behind."""
    item, out = moment.fresh.event.item_id, set(_dismissed(moment))
    if item in out:
        return 0
    place = places.get(item)
    if place is not None:
        return 1 + place - sum(places.get(other, place) < place for other in out)
    at = -1 if model is None else model.index.get(item, -1)
    if model is None or not 0 <= at <= CUTOFF + len(places) + len(out):
        return 0
    return 1 + len({*places, *model.items[:at]} - out)
