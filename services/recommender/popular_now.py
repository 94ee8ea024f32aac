"""What the stream of now tells of the model's items, made anew every few seconds: what is popular, who chooses what."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence

import numpy as np

from services.recommender.metrics import RecommenderMetrics
from services.recommender.serving import Serving
from shared.core.progress import Progress, recent_counts
from shared.model.refine import Seen, correction_now

_REST = 50
"""The next correction waits so many times as long as the last one took, at least: for a large catalogue, less often."""

_numbers = itertools.count(1)
"""Of corrections in this process: a ranking in memory is never taken for one by another."""


class PopularNow:
    """Corrects the model in use every ``refresh_s``, where what was chosen lately has changed.

    half_life_s: of what is popular now, 0: nothing is corrected; keep: items counted in each partition; refine_items:
    whose rows follow those who choose them, at most.
    """

    def __init__(
        self,
        serving: Callable[[], Serving | None],
        half_life_s: float,
        keep: int,
        refresh_s: float,
        metrics: RecommenderMetrics,
        refine_items: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._serving = serving
        self._half_life_s = half_life_s
        self._keep = keep
        self._refresh_s = refresh_s
        self._metrics = metrics
        self._refine_items = refine_items
        self._clock = clock
        self._due = 0.0
        self._done: tuple[Serving | None, tuple[int, ...]] = (None, ())

    def update(self, progresses: Sequence[Progress]) -> None:
        """Look at what consumers know; called about once a second."""
        serving = self._serving()
        if serving is None or not self._half_life_s:
            return
        held, seen = self._done
        now, offsets = self._clock(), tuple(progress.next_offset for progress in progresses)
        if serving is held and (now < self._due or offsets == seen):
            return
        ours = [progress for progress in progresses if progress.fingerprint == serving.model.fingerprint]
        choices = [choice for progress in ours for choice in progress.choices()]
        if serving is not held and not choices:
            return  # right after a swap: consumers have no states of this model yet
        recent = recent_counts(progresses, self._half_life_s, self._keep)
        began = time.perf_counter()
        known = Seen(choices, [one for progress in ours for one in progress.choosers], recent)
        correction = correction_now(serving.model, serving.bases, known, self._keep, self._refine_items)
        if correction is not None or serving.scorer.number:
            serving.scorer = serving.scorer.corrected(correction, next(_numbers) if correction is not None else 0)
        took = time.perf_counter() - began
        plain = np.zeros(0) if correction is None else np.delete(correction.extra, correction.indexes)
        self._metrics.popularity_bias.set(float(abs(plain).max(initial=0.0)))
        self._metrics.refined_items.set(0 if correction is None else len(correction.indexes))
        self._metrics.popularity_seconds.observe(took)
        self._done, self._due = (serving, offsets), now + max(self._refresh_s, _REST * took)
