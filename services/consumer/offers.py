"""What users are offered beyond the model's own catalogue, as seen from the consumer's own partitions.

The recommender makes the same from all partitions: what is trending, for users without a state, and rows for items
that came after training. Engagement has to rank by it too, or it would take for a miss what was offered.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from services.consumer.partitions import Partition
from shared.core.progress import Folded
from shared.core.trending import Trending
from shared.model.fold_in import Bases, Rows, merged
from shared.model.inference import InferenceModel
from shared.model.refine import Correction, Seen, correction_now

_REST = 200
"""The next correction waits so many times as long as the last one took, at least: half a percent of a core."""

_POPULAR = 200
"""Trending items looked at: a ranking of 20, and as many as a user can have dismissed."""


class NewRows(NamedTuple):
    """Rows of items that the model with this fingerprint does not know. places: item -> row."""

    fingerprint: int
    rows: Rows
    places: Mapping[str, int]


class Corrected(NamedTuple):
    """What the stream of now tells of the items of the model with this fingerprint; None: nothing."""

    fingerprint: int
    correction: Correction | None


class Offers(NamedTuple):
    """At one time. popular: item -> place among the trending ones, from 0."""

    popular: Mapping[str, int] = {}
    new: NewRows | None = None
    corrected: Corrected | None = None


class _Sums(NamedTuple):
    """What the rows are to be made of: sums by partition, typical states, each new item's share of all actions."""

    fingerprint: int
    folded: list[Folded]
    typical: list[bytes]
    shares: Mapping[str, float]


class _Now(NamedTuple):
    """What a correction is to be made of."""

    fingerprint: int
    seen: Seen


class OfferBook:
    """The commit takes the sums, which is quick; the scoring thread makes the rows and the correction."""

    def __init__(
        self,
        half_life_s: float,
        fold_in_min: int = 1,
        fold_in_items: int = 0,
        popularity_half_life_s: float = 0.0,
        keep: int = 1000,
        refresh_s: float = 10.0,
        refine_items: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """popularity_half_life_s: of what is popular now, 0: nothing is corrected; keep: items counted in each
        partition; refresh_s: from one correction to the next, at least; refine_items: rows replaced, at most."""
        self._popularity_half_life_s = popularity_half_life_s
        self._keep = keep
        self._refresh_s = refresh_s
        self._clock = clock
        self._now: _Now | None = None
        self._due = 0.0
        self._corrected: Corrected | None = None
        self._scored = 0  # fingerprint of the model that was scored last: not all partitions have met it yet
        self._refine_items = refine_items
        self._half_life_s = half_life_s
        self._fold_in_min = fold_in_min
        self._fold_in_items = fold_in_items
        self._sums: _Sums | None = None
        self._bases: tuple[int, Bases] | None = None
        self._popular: Mapping[str, int] = {}
        self._new: NewRows | None = None

    @property
    def current(self) -> Offers:
        """What is offered now."""
        return Offers(self._popular, self._new, self._corrected)

    def look(self, owned: Mapping[int, Partition], cold: bool) -> None:
        """Take what these partitions know. cold: whether users without a state were about."""
        self._look_at_now(owned)
        sums = [(part.folding.fingerprint, part.folding) for part in owned.values() if len(part.folding)]
        if not cold and not sums:
            self._sums = self._new = None
            return
        counts = Trending(self._half_life_s, _POPULAR)
        for part in owned.values():
            # As it was saved a moment ago; one just taken over was not.
            landmark, weights = part.trending.saved()
            counts.merge(landmark, weights if sums else weights[:_POPULAR], part.trending.total)
        self._popular = {item: place for place, (item, _) in enumerate(counts.top(_POPULAR))}
        if sums:
            now = self._recent(owned)
            counts = now if now is not None and now.total else counts
            fingerprint = sums[0][0]
            folded = [one for made_by, part in sums if made_by == fingerprint for one in part.snapshot()]
            typical = [state for made_by, part in sums if made_by == fingerprint for state, _ in part.typical]
            names = list(dict.fromkeys(one.item_id for one in folded))
            self._sums = _Sums(fingerprint, folded, typical, dict(zip(names, counts.shares(names), strict=True)))

    def _recent(self, owned: Mapping[int, Partition]) -> Trending | None:
        """What is popular now in these partitions, as it was saved a moment ago; None where it is not counted."""
        if not self._popularity_half_life_s:
            return None
        counts = Trending(self._popularity_half_life_s, self._keep)
        for part in owned.values():
            if part.recent is not None:
                landmark, weights = part.recent.saved()
                counts.merge(landmark, weights, part.recent.total, part.recent.newest)
        return counts

    def _look_at_now(self, owned: Mapping[int, Partition]) -> None:
        fingerprint = self._scored or max((part.folding.fingerprint for part in owned.values()), default=0)
        known = self._corrected is not None and self._corrected.fingerprint == fingerprint
        if not fingerprint or (known and self._clock() < self._due):
            return
        recent = self._recent(owned)
        if recent is not None:
            ours = [part for part in owned.values() if part.folding.fingerprint == fingerprint]
            choices = [one for part in ours for one in part.folding.typical]
            choosers = [one for part in ours for one in part.choosers.snapshot()]
            self._now = _Now(fingerprint, Seen(choices, choosers, recent))

    def make_correction(self, model: InferenceModel) -> None:
        """What the stream of now tells, if that was looked at since; called where there is time for it."""
        self._scored = model.fingerprint
        now, self._now = self._now, None
        if now is None or now.fingerprint != model.fingerprint:
            return
        began = time.perf_counter()
        correction = correction_now(model, self._bases_of(model), now.seen, self._keep, self._refine_items)
        self._corrected = Corrected(model.fingerprint, correction)
        self._due = self._clock() + max(self._refresh_s, _REST * (time.perf_counter() - began))

    def _bases_of(self, model: InferenceModel) -> Bases:
        if self._bases is None or self._bases[0] != model.fingerprint:
            self._bases = model.fingerprint, Bases(model)
        return self._bases[1]

    def make_rows(self, model: InferenceModel) -> None:
        """Rows from the sums last taken, if they are of this model; called where there is time for it."""
        sums, self._sums = self._sums, None
        if sums is None or sums.fingerprint != model.fingerprint:
            return
        candidates = [one for one in merged(sums.folded, self._fold_in_min) if one.item_id not in model.index]
        basis = self._bases_of(model).of(sums.typical) if candidates else None
        if basis is None:
            return
        best = heapq.nsmallest(self._fold_in_items, candidates, key=lambda c: (-sums.shares[c.item_id], c.item_id))
        rows = basis.rows(best, [sums.shares[one.item_id] for one in best])
        self._new = NewRows(model.fingerprint, rows, {item: row for row, item in enumerate(rows.items)})
