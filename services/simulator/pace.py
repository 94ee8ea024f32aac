"""When the next event is due: at a rate, in the log's own time run faster, or at once."""

from __future__ import annotations

import time
from collections.abc import Callable


class Pace:
    """Tells how long to wait before each event. A late start is caught up with, not carried along."""

    def __init__(self, rate: float = 0.0, speed: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        """rate: events a second; speed: log seconds in a second; both 0: no waiting. Only one may be set."""
        if rate < 0 or speed < 0 or (rate and speed):
            raise ValueError(f"rate={rate:g} and speed={speed:g}: one of them may be positive")
        self._rate, self._speed, self._clock = rate, speed, clock
        self._began: float | None = None
        self._first_ts = 0
        self._count = 0

    def wait_s(self, ts: int) -> float:
        """Seconds until the event with this time (ms) is due; 0 when it is or was. Call once for each event."""
        now = self._clock()
        if self._began is None:
            self._began, self._first_ts = now, ts
        if self._rate:
            due = self._began + self._count / self._rate
        elif self._speed:
            due = self._began + (ts - self._first_ts) / 1000 / self._speed
        else:
            due = now
        self._count += 1
        return max(0.0, due - now)
