"""Is one ranking better than another, asked the same questions? The paired bootstrap, by session.

Efron and Tibshirani 1993: sessions, not events, are drawn anew with replacement, as events of one session hang
together; and each draw takes both rankings' hits, so that hard and easy sessions cancel out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
CHUNK = 4 << 20
"""Draws of sessions held at once: 32 MB."""


@dataclass(frozen=True, slots=True)
class Paired:
    """Left against right. Gains are relative, of the sum: .1 is a tenth more; None where the right has nothing."""

    confidence: float
    """Share of the resamples in which left is better by more than the margin"""
    gain: float | None
    low: float | None
    """Of nineteen in twenty resamples the gain is higher"""
    high: float | None


def paired_bootstrap(left: Array, right: Array, margin: float = 0.0, *, resamples: int = 2000, seed: int = 1) -> Paired:
    """left, right (S,): what each gains in session s, such as hits. margin: relative, of the right's sum.

    The same numbers and seed give the same result.
    """
    if not len(left):
        return Paired(0.0, None, None, None)
    sums = _resampled(np.stack([left, right], 1).astype(np.float64), resamples, seed)  # (resamples, 2)
    better = sums[:, 0] > sums[:, 1] * (1 + margin) + 1e-9
    if not right.sum() or not (sums[:, 1] > 0).all():
        gain = float(left.sum() / right.sum() - 1) if right.sum() else None
        return Paired(float(better.mean()), gain, None, None)
    low, high = np.quantile(sums[:, 0] / sums[:, 1] - 1, [0.05, 0.95])
    return Paired(float(better.mean()), float(left.sum() / right.sum() - 1), float(low), float(high))


def _resampled(values: Array, resamples: int, seed: int) -> Array:
    """values (S, K) -> (resamples, K): sums over S rows drawn with replacement."""
    rng = np.random.default_rng(seed)
    count = len(values)
    found = []
    for begin in range(0, resamples, max(1, CHUNK // count)):
        size = min(max(1, CHUNK // count), resamples - begin)
        drawn = rng.integers(0, count, (size, count))
        found.append(np.stack([column[drawn].sum(1) for column in values.T], 1))
    return np.concatenate(found)
