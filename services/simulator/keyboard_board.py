"""What the keyboard scenario counts: accepted suggestions over time and by model, beside the commonest words so far."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field

SHOWN = 3
BUCKET = 500
"""Words of one point of the curve"""
_COMMON_EVERY = 100
_RECENT_BUCKETS = 4


@dataclass
class Tally:
    """Words typed, and how many of them were among the suggestions."""

    words: int = 0
    accepted: int = 0
    common: int = 0
    """How many were among the three commonest words typed before: what needs no model"""

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.words + other.words, self.accepted + other.accepted, self.common + other.common)

    @property
    def share(self) -> float:
        """Of accepted suggestions; 0 without words."""
        return self.accepted / self.words if self.words else 0.0

    @property
    def common_share(self) -> float:
        """The same of the commonest words."""
        return self.common / self.words if self.words else 0.0


@dataclass
class Board:
    """Written by the typing threads, read by the one that shows it."""

    total: Tally = field(default_factory=Tally)
    buckets: list[Tally] = field(default_factory=list)
    by_model: dict[str, Tally] = field(default_factory=dict)
    """By model version; "trending" before the first"""
    swaps: list[tuple[int, str]] = field(default_factory=list)
    """(words typed before, version) when a version's suggestions were first seen"""
    unanswered: int = 0
    failure: Exception | None = None
    _counts: Counter[str] = field(default_factory=Counter)
    _common: frozenset[str] = frozenset()
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def typed(self, word: str, accepted: bool, model: str) -> None:
        """One word that had suggestions, and whether it was one of them."""
        with self._lock:
            number = self.total.words
            if number // BUCKET == len(self.buckets):
                self.buckets.append(Tally())
            if number % _COMMON_EVERY == 0:
                self._common = frozenset(name for name, _ in self._counts.most_common(SHOWN))
            if model not in self.by_model:
                self.by_model[model] = Tally()
                self.swaps.append((number, model))
            for tally in (self.total, self.buckets[-1], self.by_model[model]):
                tally.words += 1
                tally.accepted += accepted
                tally.common += word in self._common
            self._counts[word] += 1

    def recent(self) -> Tally:
        """Of the last one or two thousand words."""
        with self._lock:
            return sum(self.buckets[-_RECENT_BUCKETS:], Tally())

    def tenth(self, last: bool) -> Tally:
        """Of the first or the last tenth of all words (in whole buckets, at least one)."""
        count = max(1, len(self.buckets) // 10)
        return sum(self.buckets[-count:] if last else self.buckets[:count], Tally())
