"""Engagement over time for the console: outcomes by model version in buckets of five seconds, for some hours."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import msgspec

from shared.core.engagement import Counted, EngagementBatch

BUCKET_S = 5
KEEP_S = 6 * 3600
_BUCKETS = KEEP_S // BUCKET_S
TRENDING = ""
"""The version of outcomes whose ranking was what is trending."""


@dataclass(slots=True)
class Tally:
    """Outcomes: how many, hits among the first 20, at the first place, and the sum of 1/rank."""

    count: int = 0
    hits: int = 0
    first: int = 0
    reciprocal_rank: float = 0.0

    def add(self, other: Tally) -> None:
        """These as well."""
        self.count += other.count
        self.hits += other.hits
        self.first += other.first
        self.reciprocal_rank += other.reciprocal_rank


class Series(msgspec.Struct):
    """One version's outcomes. ``points``: [step, outcomes, hits among 20, at the first place, sum of 1/rank], rising
    by step; steps without an outcome are left out."""

    version: str
    points: list[tuple[int, int, int, int, float]]


class EngagementHistory:
    """Written by one thread, read by others. What is counted twice after a crash of a consumer counts once here."""

    def __init__(self) -> None:
        self._counted = Counted()
        self._buckets: dict[int, dict[str, Tally]] = {}
        self._lock = threading.Lock()

    def add(self, batch: EngagementBatch, at_ms: int) -> None:
        """Outcomes that were published at that time (ms since the epoch)."""
        new = self._counted.take(batch)
        if new is None or not new.count:
            return
        tally = Tally(new.count, new.hits["20"], new.hits["1"], new.reciprocal_rank)
        with self._lock:
            bucket = self._buckets.setdefault(at_ms // (1000 * BUCKET_S), {})
            bucket.setdefault(new.model_version, Tally()).add(tally)
            if len(self._buckets) > _BUCKETS:
                del self._buckets[min(self._buckets)]

    def series(self, from_ms: int, step_s: int, steps: int) -> list[Series]:
        """By version, the oldest first, trending before all. step_s: a multiple of the bucket's seconds; from_ms: a
        multiple of the step."""
        first, per_step = from_ms // (1000 * BUCKET_S), step_s // BUCKET_S
        merged: dict[str, dict[int, Tally]] = {}
        with self._lock:
            for number in sorted(n for n in self._buckets if first <= n < first + steps * per_step):
                for version, tally in self._buckets[number].items():
                    at = (number - first) // per_step
                    merged.setdefault(version, {}).setdefault(at, Tally()).add(tally)
        return [
            Series(version, [(at, t.count, t.hits, t.first, round(t.reciprocal_rank, 3)) for at, t in points.items()])
            for version, points in sorted(merged.items(), key=lambda pair: _order(pair[0]))
        ]

    def last(self, now_ms: int, seconds: int) -> Tally:
        """Outcomes of all versions in the last ``seconds``, by whole buckets: the present one is the last."""
        before, total = now_ms // (1000 * BUCKET_S) - seconds // BUCKET_S, Tally()
        with self._lock:
            for number, tallies in self._buckets.items():
                if number > before:
                    for tally in tallies.values():
                        total.add(tally)
        return total


def _order(version: str) -> tuple[int, str]:
    return (int(version), "") if version.isdigit() else (-1, version)
