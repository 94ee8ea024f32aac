"""What the demo measures, with the arithmetic apart from the threads that feed it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

Clock = Callable[[], float]
BUCKET_S = 2.0
RECENT_BUCKETS = 5  # the recent window: 10 s
_SPARKS = "▁▂▃▄▅▆▇█"


@dataclass
class Shares:
    """How many next actions were in the top 20: of the ranking that we held, and of the trending list."""

    actions: int = 0
    held: int = 0
    trending: int = 0

    def add(self, held: bool, trending: bool) -> None:
        """One action."""
        self.actions += 1
        self.held += held
        self.trending += trending

    def __add__(self, other: Shares) -> Shares:
        return Shares(self.actions + other.actions, self.held + other.held, self.trending + other.trending)

    @property
    def held_share(self) -> float:
        """0 where nothing was measured."""
        return self.held / self.actions if self.actions else 0.0

    @property
    def trending_share(self) -> float:
        """0 where nothing was measured."""
        return self.trending / self.actions if self.actions else 0.0


class Hits:
    """Shares since the start, and in buckets of two seconds for the recent ones and the curve."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self.total = Shares()
        self.by_model = Shares()  # the part of it whose ranking came from the model, not from trending
        self.unknown = 0  # actions on items that the model was not trained on
        self._clock = clock
        self._began = clock()
        self._buckets: dict[int, Shares] = {}

    def add(self, held: bool, trending: bool, by_model: bool = False, unknown: bool = False) -> None:
        """One action, now."""
        self.total.add(held, trending)
        self.unknown += unknown
        if by_model:
            self.by_model.add(held, trending)
        self._buckets.setdefault(self._now(), Shares()).add(held, trending)

    def recent(self) -> Shares:
        """Of the last ten seconds, about."""
        now = self._now()
        parts = [self._buckets[n] for n in range(now - RECENT_BUCKETS + 1, now + 1) if n in self._buckets]
        return sum(parts, Shares())

    def curve(self, points: int) -> list[Shares]:
        """The last buckets, oldest first."""
        return [self._buckets[n] for n in sorted(self._buckets)[-points:]]

    def over_time(self) -> list[tuple[float, Shares]]:
        """(seconds since the start at which it begins, shares) of each bucket, oldest first."""
        return [(n * BUCKET_S, self._buckets[n]) for n in sorted(self._buckets)]

    def age(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._began

    def _now(self) -> int:
        return int(self.age() / BUCKET_S)


class Rate:
    """Events a second, over the last three seconds."""

    _SPAN_S = 3.0

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self.count = 0
        self._clock = clock
        self._samples: deque[tuple[float, int]] = deque([(clock(), 0)])

    def add(self, count: int = 1) -> None:
        """So many more."""
        self.count += count

    def per_second(self) -> float:
        """Call this a few times a second: each call is a sample."""
        now = self._clock()
        self._samples.append((now, self.count))
        while len(self._samples) > 2 and now - self._samples[1][0] >= self._SPAN_S:
            self._samples.popleft()
        since, count = self._samples[0]
        return (self.count - count) / (now - since) if now > since else 0.0


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that is not below ``share`` of all values (nearest rank)."""
    ranked = sorted(values)
    return ranked[max(0, min(len(ranked) - 1, -int(-share * len(ranked) // 1) - 1))]


def spark(shares: Sequence[float]) -> str:
    """Shares between 0 and 1 as a small curve."""
    return "".join(_SPARKS[min(len(_SPARKS) - 1, int(share * len(_SPARKS)))] for share in shares)


@dataclass
class Board:
    """Everything that is shown; the threads write it, the view reads it. Single fields need no lock in CPython."""

    events: Rate = field(default_factory=Rate)
    http_rankings: Rate = field(default_factory=Rate)
    topic_rankings: Rate = field(default_factory=Rate)
    hits: Hits = field(default_factory=Hits)  # of the present phase
    whole: Hits = field(default_factory=Hits)  # of the whole demo
    freshness_ms: list[float] = field(default_factory=list)
    unseen: int = 0  # probes whose event did not show within the limit
    unanswered: int = 0  # requests that failed, as while a service starts again
    model_version: str | None = None
    sample_user: str = ""
    failure: Exception | None = None
    exhausted: bool = False
    notices: deque[str] = field(default_factory=lambda: deque(maxlen=4))
