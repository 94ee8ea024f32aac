"""What a training may take: seconds, shared out among its stages, and bytes, which decide how much log it reads."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from shared.core.errors import SettingsInvalid

MODEL_COPIES = 12
"""Of the item table at the worst moment: champion, start, weights, two moments of Adam, a checkpoint of these three,
the best epoch and its copy, the network that is evaluated, and one for the margin."""
ITEM_BYTES = 600
"""Of an item beside its rows: its id in the catalogue, in the champion's, in the frames that number them."""
EVENT_BYTES = 480
"""Of an event at the worst moment, while sessions are built from the log's frame: 445 measured, whatever the ids."""
FIXED_BYTES = 300 << 20
"""For training as such: torch's optimizers, one update, and the scores of an evaluation; 210 to 280 MB measured."""
LEAST_EVENTS = 1000


class TimeBudget:
    """Counts from its making. seconds: 0: no limit."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock, self._began = seconds, clock, clock()

    @property
    def elapsed(self) -> float:
        """Seconds."""
        return self._clock() - self._began

    def until(self, share: float) -> Callable[[], float]:
        """For a stage that begins now and has to end when ``share`` of all time is gone: the share of that stage's own
        time that is gone, 1 and more: it is over."""
        begin, end = self.elapsed, self._seconds * share
        if not self._seconds:
            return lambda: 0.0
        return lambda: (self.elapsed - begin) / (end - begin) if end > begin else 1.0


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """bytes: 0: no limit; held: what the process needs before it has read anything."""

    bytes: int
    held: int

    def events(self, items: int, width: int) -> int:
        """Events of the log for which there is room beside a model of so many items. Raises SettingsInvalid."""
        if not self.bytes:
            return sys.maxsize
        model = items * (width * 4 * MODEL_COPIES + ITEM_BYTES)
        fixed = self.held + FIXED_BYTES + model
        room = (self.bytes - fixed) // EVENT_BYTES
        if room < LEAST_EVENTS:
            needed = (fixed + LEAST_EVENTS * EVENT_BYTES) / 2**20
            raise SettingsInvalid(
                f"TRAIN_MEMORY_MB is {self.bytes >> 20}: {items:,} items of width {width} need at least {needed:,.0f}"
            )
        return room


def peak_bytes() -> int:
    """The most memory that this process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
