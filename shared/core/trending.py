"""What is popular now: counts that fade with time, the same in whatever order events come.

Forward decay (Cormode, Shkapenyuk, Srivastava and Xu, "Forward Decay", ICDE 2009): an event at time t weighs
2^((t - L) / half-life) against a landmark L. Weights are added, so any order and any split give the same counts, and
all counts fade together by comparison alone. The landmark moves when weights grow large.
"""

from __future__ import annotations

from collections.abc import Iterable

_SHIFT_AT = 64.0
"""Halvings after which the landmark moves; 2^64 leaves a double all its precision."""


class Trending:
    """Decayed item counts, bounded in size.

    half_life_s: seconds in which an event loses half its weight. keep: items kept; while counting, up to
    eight times as many are held, then the least popular go.
    """

    def __init__(self, half_life_s: float, keep: int) -> None:
        self._half_life_ms = half_life_s * 1000.0
        self._keep = keep
        self._landmark = 0
        self._weights: dict[str, float] = {}
        self._total = 0.0
        self.newest = 0
        """Time of the newest event, ms since the epoch."""
        self.last: tuple[int, list[tuple[str, float]]] = (0, [])
        """What ``snapshot`` gave last."""

    @property
    def total(self) -> float:
        """The weight of all events, those on items that are not kept included."""
        return self._total

    def add(self, item_id: str, ts: int) -> None:
        """Count one event at ``ts`` (ms since the epoch)."""
        if not self._landmark:
            self._landmark = ts
        if ts > self.newest:
            self.newest = ts
        exponent = (ts - self._landmark) / self._half_life_ms
        if exponent > _SHIFT_AT:
            self._move_landmark(ts)
            exponent = 0.0
        weights = self._weights
        # An event long before the landmark weighs nothing; 2.0 ** -1000 is still a number.
        weight = 2.0 ** max(exponent, -1000.0)
        weights[item_id] = weights.get(item_id, 0.0) + weight
        self._total += weight
        if len(weights) > 8 * self._keep:
            self._weights = dict(self.top(4 * self._keep))

    def _move_landmark(self, ts: int) -> None:
        factor = 2.0 ** max((self._landmark - ts) / self._half_life_ms, -1000.0)
        self._landmark = ts
        self._total *= factor
        self._weights = {item: weight * factor for item, weight in self._weights.items() if weight * factor > 1e-30}

    def merge(self, landmark: int, weights: Iterable[tuple[str, float]], total: float = 0.0, newest: int = 0) -> None:
        """Add another's counts, as ``snapshot`` gives them, its total (without one, that of the counts) and the time of
        its newest event."""
        self.newest = max(self.newest, newest)
        if landmark > self._landmark:
            if self._weights:
                self._move_landmark(landmark)
            self._landmark = landmark
        factor = 2.0 ** max((landmark - self._landmark) / self._half_life_ms, -1000.0)
        own, counted = self._weights, 0.0
        for item, weight in weights:
            own[item] = own.get(item, 0.0) + weight * factor
            counted += weight
        self._total += (total or counted) * factor

    def top(self, count: int) -> list[tuple[str, float]]:
        """The ``count`` most popular items and their weights; ties by item id."""
        pairs: Iterable[tuple[str, float]] = self._weights.items()
        if 0 < count < len(self._weights):
            floor = sorted(self._weights.values(), reverse=True)[count - 1]
            pairs = [pair for pair in pairs if pair[1] >= floor]
        # Twice as fast as heapq.nsmallest for 1,000 of 8,000.
        return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))[:count]

    def shares(self, item_ids: Iterable[str]) -> list[float]:
        """Of the weight of all events, the part of each item; one that is not kept gets that of the least that is."""
        least = min(self._weights.values(), default=1.0)
        total = max(self._total, least)
        return [max(self._weights.get(item, least), 1e-30) / total for item in item_ids]

    def weight(self, item_id: str) -> float:
        """What an item weighs beside others; 0 where it is not held."""
        return self._weights.get(item_id, 0.0)

    def counts(self) -> tuple[dict[str, float], float]:
        """Choices of each item held, and of all items; those of the newest event's time count one each."""
        # Of a longer half-life, as stored before the setting was changed, weights may lie far from the landmark.
        unit = 2.0 ** min(1000.0, max(-1000.0, (self.newest - self._landmark) / self._half_life_ms))
        return {item: weight / unit for item, weight in self._weights.items()}, self._total / unit

    def snapshot(self) -> tuple[int, list[tuple[str, float]]]:
        """(landmark in ms, the most popular items): what is stored."""
        self.last = self._landmark, self.top(self._keep)
        return self.last

    def saved(self) -> tuple[int, list[tuple[str, float]]]:
        """What ``snapshot`` gave last; made now where there was none yet."""
        return self.last if self.last[1] else self.snapshot()
