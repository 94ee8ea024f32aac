"""Items that came after training, ranked beside the model's own: exactly, and without touching the catalogue.

A cached ranking holds the best of the catalogue for a state. The few rows of new items are scored for each answer,
a product of two rows at a time in double precision, and merged in. So rankings stay in memory while new items change
from second to second, and what is answered is the exact ranking of both together.
"""

from __future__ import annotations

import heapq
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np

from services.recommender.metrics import RecommenderMetrics
from shared.core.progress import Progress, recent_counts
from shared.core.trending import Trending
from shared.model.fold_in import Rows, merged
from shared.model.scorer import six_digits

if TYPE_CHECKING:
    from services.recommender.serving import Serving


class NewItems(NamedTuple):
    """Rows of one model for items that it does not know, by item id. names: the ids as JSON; rows: id -> row."""

    names: Sequence[bytes] = ()
    rows: Mapping[str, int] = {}
    embedding: np.ndarray = np.zeros((0, 0))
    """(N, D) float64"""
    bias: np.ndarray = np.zeros(0)
    """(N,) float64"""

    @classmethod
    def of(cls, rows: Rows) -> NewItems:
        """Ready to rank by."""
        return cls(
            [msgspec.json.encode(item) for item in rows.items],
            {item: row for row, item in enumerate(rows.items)},
            rows.embedding.astype(np.float64),
            rows.bias.astype(np.float64),
        )

    def merge(
        self, indexes: np.ndarray, scores: np.ndarray, hidden: bytes, first: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """(indexes, scores) of the catalogue's n best and all new items, best first; new ones count from ``first``.

        hidden: (D,) float16. The first n places are those of a search over everything; at equal scores the
        catalogue's items come first.
        """
        state = np.frombuffer(hidden, np.float16).astype(np.float64)
        own = six_digits(np.vecdot(self.embedding, state) + self.bias)
        every = np.concatenate([scores, own])
        order = np.argsort(-every, kind="stable")
        places = np.concatenate([indexes, np.arange(first, first + len(own), dtype=indexes.dtype)])
        return places[order], every[order]


NO_NEW_ITEMS = NewItems()


class Folding:
    """Turns what consumers know of new items into rows of the model in use, where that has changed.

    minimum: times an item must have been chosen; keep: rows at most, those with the largest share of all actions.
    """

    def __init__(
        self,
        serving: Callable[[], Serving | None],
        minimum: int,
        keep: int,
        metrics: RecommenderMetrics,
        half_life_s: float = 0.0,
    ) -> None:
        """half_life_s: of what is popular now, by which new items have their shares; 0: by what is trending."""
        self._half_life_s = half_life_s
        self._serving = serving
        self._minimum = minimum
        self._keep = keep
        self._metrics = metrics
        self._done: tuple[Serving | None, Sequence[Progress]] = (None, ())

    def update(self, progresses: Sequence[Progress], counts: Trending) -> None:
        """Give the model in use the rows of now. counts: what is popular, over all partitions."""
        serving = self._serving()
        held, seen = self._done
        same = len(seen) == len(progresses) and all(map(operator.is_, seen, progresses))
        if serving is None or (serving is held and same):
            return
        serving.new_items = self._rows(serving, progresses, counts)
        self._done = (serving, list(progresses))
        self._metrics.new_items.set(len(serving.new_items.names))

    def _rows(self, serving: Serving, progresses: Sequence[Progress], counts: Trending) -> NewItems:
        model = serving.model
        ours = [progress for progress in progresses if progress.fingerprint == model.fingerprint]
        found = merged((folded for progress in ours for folded in progress.folded), self._minimum)
        candidates = [c for c in found if c.item_id not in model.index]
        basis = serving.bases.of(state for progress in ours for state in progress.typical) if candidates else None
        if basis is None or not self._keep:
            return NO_NEW_ITEMS
        names = [c.item_id for c in candidates]
        if self._half_life_s and any(progress.recent for progress in progresses):
            counts = recent_counts(progresses, self._half_life_s, len(names))
        shares = dict(zip(names, counts.shares(names), strict=True))
        best = heapq.nsmallest(self._keep, candidates, key=lambda c: (-shares[c.item_id], c.item_id))
        return NewItems.of(basis.rows(best, [shares[c.item_id] for c in best]))
