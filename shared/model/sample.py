"""Negatives for the sampled softmax, drawn by popularity to a power."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Candidates:
    """The items that one update scores. ``items`` are distinct."""

    items: Array
    """(C,) int64"""
    targets: Array
    """(N,) int64: where each pair's target is in ``items``"""
    correction: Array
    """(C,) float32: add to an item's score where it is a negative; -inf: it is no negative at all"""
    barred: Array | None = None
    """(N,) int64: where in ``items`` the one is that each pair does not have as a negative; None: they have all"""


class NegativeSampler:
    """Draws items with probability proportional to popularity^power, with replacement.

    counts: (I,) how often each item is a target; items never seen count as once, so that they get pushed down too.
    """

    def __init__(self, counts: Array, power: float) -> None:
        weights = np.maximum(counts, 1).astype(np.float64) ** power
        self.probability = weights / weights.sum()
        self._cumulative = np.cumsum(self.probability)
        self._cumulative[-1] = 1.0

    def draw(self, count: int, rng: np.random.Generator) -> Array:
        """(count,) item indexes."""
        return np.searchsorted(self._cumulative, rng.random(count), side="right")

    def candidates(self, targets: Array, count: int, rng: np.random.Generator) -> Candidates:
        """The batch's targets and ``count`` draws as one list of distinct items.

        A drawn item stands for 1 / (count * probability) of the catalogue's mass each time that it was drawn (Bengio
        and Senecal 2008), hence the correction; a target that was not drawn is a candidate only of its own pair.
        """
        drawn = self.draw(count, rng)
        items, place = np.unique(np.concatenate([targets, drawn]), return_inverse=True)
        times = np.bincount(place[len(targets) :], minlength=len(items))
        with np.errstate(divide="ignore"):
            correction = np.log(times / (count * self.probability[items]))
        return Candidates(items, place[: len(targets)], correction.astype(np.float32))


def all_items(targets: Array, catalogue: int) -> Candidates:
    """Full softmax as a special case: every item is a candidate, and stands for itself."""
    return Candidates(np.arange(catalogue), targets, np.zeros(catalogue, np.float32))
