"""Is a new model's engagement worse than that of the one before? Hits per event, by a test of two proportions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

LEAST_EVENTS = 100
"""Fewer say nothing about the level before: then nothing is rolled back."""
LOOKS = (0.25, 0.5, 1.0)
"""Shares of ROLLBACK_EVENTS after which the new model is judged: a bad one need not be suffered to the end."""

Verdict = Literal["wait", "keep", "roll back"]


class Level(NamedTuple):
    """How often the next action was among the first 20, over a number of scored events."""

    hits: int
    events: int

    @property
    def rate(self) -> float:
        """Hits per event; 0 without events."""
        return self.hits / self.events if self.events else 0.0


def p_lower(new: Level, old: Level) -> float:
    """Probability of a new rate so far below the old one if both were the same: one-sided, pooled normal test.

    1.0 where there is nothing to compare.
    """
    if not new.events or not old.events:
        return 1.0
    pooled = (new.hits + old.hits) / (new.events + old.events)
    variance = pooled * (1 - pooled) * (1 / new.events + 1 / old.events)
    if variance == 0:
        return 1.0
    z = (new.rate - old.rate) / math.sqrt(variance)
    return 0.5 * math.erfc(-z / math.sqrt(2))


class Judgement(NamedTuple):
    """What to do about a promotion, and the numbers behind it."""

    verdict: Verdict
    before: Level
    after: Level
    p: float
    """As p_lower; 1.0 while there was no look."""


def judge_promotion(bits: Sequence[int], before: Level, events: int, p: float) -> Judgement:
    """bits: hits (1) and misses (0) of the new model since its promotion, in order; events, p: the settings.

    Each look is at the first bits only, so asking more often changes nothing; p is shared out among the looks
    (Bonferroni), so that all together roll back a model as good as the old one with a probability of at most p.
    """
    last = Judgement("wait", before, Level(sum(bits), len(bits)), 1.0)
    if before.events < LEAST_EVENTS:
        return last._replace(verdict="keep")
    for share in LOOKS:
        count = max(1, round(share * events))
        if len(bits) < count:
            return last
        after = Level(sum(bits[:count]), count)
        found = p_lower(after, before)
        last = Judgement("wait", before, after, found)
        if found < p / len(LOOKS):
            return last._replace(verdict="roll back")
    return last._replace(verdict="keep")
