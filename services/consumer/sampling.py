"""How many events are scored: as many as can be without slowing the stream."""

from __future__ import annotations

import time
from collections.abc import Callable

from shared.core.engagement import SAMPLE_ALL

_ADAPT_S = 1.0
_FLOPS = 2e10
"""Assumed of one core until the first moments were scored, in multiplications and additions a second."""
_SMOOTH = 0.3
_BACKLOG_S = 1.0
"""Moments wait for their scores in a queue of at most so many seconds' worth."""
_LEAST_BACKLOG = 16


class SampleRate:
    """The share of events to score: all, or as many a second as ``max_per_s`` and ``cpu_share`` of a core allow.

    Adapted once a second to the rate of the stream and the time that a score takes. Called by the batch thread,
    except ``scored``, which only replaces a number.
    """

    def __init__(self, max_per_s: float, cpu_share: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_per_s = max_per_s
        self._cpu_share = cpu_share
        self._clock = clock
        self._cost_s = 0.0
        self._events = 0
        self._since = clock()
        self.rate = 1.0 if max_per_s else 0.0

    def affordable(self) -> float:
        """Scores a second."""
        return min(self._max_per_s, self._cpu_share / self._cost_s) if self._cost_s else self._max_per_s

    def backlog(self) -> float:
        """Moments that may wait at most."""
        return max(_LEAST_BACKLOG, self.affordable() * _BACKLOG_S)

    def threshold(self, events: int, waiting: int, model_weights: int) -> int:
        """For ``sampled``, for a batch of so many events while so many moments wait.

        model_weights: items times width, to guess the first cost by.
        """
        if not self._cost_s and model_weights:
            self._cost_s = 2 * model_weights / _FLOPS
        now = self._clock()
        self._events += events
        if (elapsed := now - self._since) >= _ADAPT_S:
            self.rate = min(1.0, self.affordable() * elapsed / max(1, self._events))
            self._events, self._since = 0, now
        room = max(0.0, self.backlog() - waiting)
        return int(min(self.rate, room / max(1, events)) * SAMPLE_ALL)

    def scored(self, count: int, seconds: float) -> None:
        """So many moments took so long, in time of the processor: where it has to wait, the queue shows it."""
        if count:
            self._cost_s += _SMOOTH * (seconds / count - self._cost_s)
