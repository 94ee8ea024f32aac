"""What happens now, for the console: rates, freshness and lag, of all recommenders together, and the last minutes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

SAMPLES = 180
"""Seconds that are kept."""
RATE_S = 5.0
"""A rate is taken over so long."""
FRESH_S = 15.0
"""Freshness is told of what came within so long."""
MOST_AGES = 64
"""Samples that one recommender tells the others."""


class Rate:
    """Growth a second of a number that only grows; one that falls began anew."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, float]] = deque()

    def see(self, total: float) -> float | None:
        """The number now; its rate, None for the first."""
        now = self._clock()
        if self._seen and total < self._seen[-1][1]:
            self._seen.clear()
        self._seen.append((now, total))
        while len(self._seen) > 2 and now - self._seen[1][0] >= RATE_S:
            self._seen.popleft()
        since, before = self._seen[0]
        return (total - before) / (now - since) if now > since else None


class Word(msgspec.Struct):
    """What a recommender says of itself: rankings a second, and ages (ms) of states and rankings of late."""

    http_per_s: float | None = None
    topic_per_s: float | None = None
    state_ms: list[int] = []
    ranking_ms: list[int] = []
    emits: bool = True


class Quantiles(msgspec.Struct):
    """Of ``count`` samples; ms."""

    p50: int
    p95: int
    count: int


class Sample(msgspec.Struct, array_like=True):
    """One second: when (ms since the epoch), and what is known of it."""

    at: int
    events_per_s: float | None
    http_per_s: float | None
    topic_per_s: float | None
    lag: int | None
    state_ms: int | None


class Now(msgspec.Struct):
    """What is known now; None: not known."""

    events_total: int | None = None
    events_per_s: float | None = None
    http_per_s: float | None = None
    topic_per_s: float | None = None
    lag: int | None = None
    state_ms: Quantiles | None = None
    ranking_ms: Quantiles | None = None
    recommenders: int | None = None
    emits: bool = True


def quantiles(ages: Sequence[int]) -> Quantiles | None:
    """Nearest rank; None of nothing."""
    if not ages:
        return None
    ranked = sorted(ages)
    last = len(ranked) - 1
    return Quantiles(ranked[round(0.5 * last)], ranked[round(0.95 * last)], len(ranked))


def few(ages: Sequence[int]) -> list[int]:
    """Not more than are told, evenly."""
    return list(ages[:: max(1, -(-len(ages) // MOST_AGES))])


class Live:
    """Written by the console's threads, a field each; replaced whole, so that readers need no lock."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._events = Rate()
        self.now = Now()
        self._history: deque[Sample] = deque(maxlen=SAMPLES)

    def saw_topic(self, events_total: int | None, lag: int | None) -> None:
        """Where the interactions end, and how far behind the consumers are; None: not known."""
        now = self.now
        now.events_total, now.lag = events_total, lag
        now.events_per_s = None if events_total is None else self._events.see(events_total)

    def heard(self, words: Iterable[Word] | None) -> None:
        """What all recommenders say; None: not known."""
        now = self.now
        if words is None:
            now.http_per_s = now.topic_per_s = now.recommenders = now.state_ms = now.ranking_ms = None
            return
        told = list(words)
        now.recommenders = len(told)
        now.http_per_s = _sum(word.http_per_s for word in told)
        now.topic_per_s = _sum(word.topic_per_s for word in told)
        now.state_ms = quantiles([age for word in told for age in word.state_ms])
        now.ranking_ms = quantiles([age for word in told for age in word.ranking_ms])
        now.emits = any(word.emits for word in told)

    def sample(self) -> None:
        """Keep what is known now."""
        now = self.now
        state = now.state_ms.p50 if now.state_ms is not None else None
        at = int(1000 * self._clock())
        self._history.append(Sample(at, now.events_per_s, now.http_per_s, now.topic_per_s, now.lag, state))

    def history(self) -> list[Sample]:
        """The last minutes, a sample a second, oldest first."""
        return list(self._history)


def _sum(rates: Iterable[float | None]) -> float | None:
    """Of those that are known; None where none is."""
    known = [rate for rate in rates if rate is not None]
    return sum(known) if known else None


def by_way(totals: Mapping[str, float], rates: Mapping[str, Rate]) -> dict[str, float | None]:
    """Rankings a second of each way; None where it is not known yet."""
    return {way: rate.see(totals.get(way, 0.0)) for way, rate in rates.items()}
