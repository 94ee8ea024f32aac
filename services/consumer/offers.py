"""What users are offered beyond the model's own catalogue, as seen from the consumer's own partitions.

The recommender makes the same from all partitions: what is trending, for users without a state, and rows for items
that came after training. Engagement has to rank by it too, or it would take for a miss what was offered.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from typing import NamedTuple

from services.consumer.partitions import Partition
from shared.core.progress import Folded
from shared.core.trending import Trending
from shared.model.fold_in import Bases, Rows, merged
from shared.model.inference import InferenceModel

_POPULAR = 200
"""Trending items looked at: a ranking of 20, and as many as a user can have dismissed."""


class NewRows(NamedTuple):
    """Rows of items that the model with this fingerprint does not know. places: item -> row."""

    fingerprint: int
    rows: Rows
    places: Mapping[str, int]


class Offers(NamedTuple):
    """At one time. popular: item -> place among the trending ones, from 0."""

    popular: Mapping[str, int] = {}
    new: NewRows | None = None


class _Sums(NamedTuple):
    """What the rows are to be made of: sums by partition, typical states, each new item's share of all actions."""

    fingerprint: int
    folded: list[Folded]
    typical: list[bytes]
    shares: Mapping[str, float]


class OfferBook:
    """The commit takes the sums, which is quick; the scoring thread makes the rows."""

    def __init__(self, half_life_s: float, fold_in_min: int = 1, fold_in_items: int = 0) -> None:
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
        return Offers(self._popular, self._new)

    def look(self, owned: Mapping[int, Partition], cold: bool) -> None:
        """Take what these partitions know. cold: whether users without a state were about."""
        sums = [(part.folding.fingerprint, part.folding) for part in owned.values() if len(part.folding)]
        if not cold and not sums:
            self._sums = self._new = None
            return
        counts = Trending(self._half_life_s, _POPULAR)
        for part in owned.values():
            # As it was saved a moment ago; one just taken over was not.
            landmark, weights = part.trending.last if part.trending.last[1] else part.trending.snapshot()
            counts.merge(landmark, weights if sums else weights[:_POPULAR], part.trending.total)
        self._popular = {item: place for place, (item, _) in enumerate(counts.top(_POPULAR))}
        if sums:
            fingerprint = sums[0][0]
            folded = [one for made_by, part in sums if made_by == fingerprint for one in part.snapshot()]
            typical = [state for made_by, part in sums if made_by == fingerprint for state in part.typical]
            names = list(dict.fromkeys(one.item_id for one in folded))
            self._sums = _Sums(fingerprint, folded, typical, dict(zip(names, counts.shares(names), strict=True)))

    def make_rows(self, model: InferenceModel) -> None:
        """Rows from the sums last taken, if they are of this model; called where there is time for it."""
        sums, self._sums = self._sums, None
        if sums is None or sums.fingerprint != model.fingerprint:
            return
        candidates = [one for one in merged(sums.folded, self._fold_in_min) if one.item_id not in model.index]
        if self._bases is None or self._bases[0] != model.fingerprint:
            self._bases = model.fingerprint, Bases(model)
        basis = self._bases[1].of(sums.typical) if candidates else None
        if basis is None:
            return
        best = heapq.nsmallest(self._fold_in_items, candidates, key=lambda c: (-sums.shares[c.item_id], c.item_id))
        rows = basis.rows(best, [sums.shares[one.item_id] for one in best])
        self._new = NewRows(model.fingerprint, rows, {item: row for row, item in enumerate(rows.items)})
