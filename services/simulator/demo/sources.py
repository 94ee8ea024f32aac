"""Where the demo's interactions come from: simulated shoppers, or a real log."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

from services.simulator.replay import interactions
from services.simulator.shoppers import Shoppers
from shared.adapters.interaction_logs import load_log
from shared.core.errors import LogUnreadable
from shared.core.events import Interaction

_LEAST_EVENTS = 2_000
# A user's state is carried from one session to the next, so that is what the model learns from.
_AS_SERVED = ("--sequence", "user")
_HISTORY = 230_000  # half a minute to stream, half a minute to train on
_LARGEST_SHARE = 0.6  # of a small log goes into training, so that something remains to stream


@dataclass(frozen=True)
class Plan:
    """How a source is streamed: ``history`` events at ``history_rate`` a second to train on, then on at ``rate``."""

    history: int
    history_rate: float
    rate: float
    seconds: float
    train_flags: tuple[str, ...] = ()
    """Of the training that the demo starts on the first part; none: the retrainer trains by itself."""


class Source(Protocol):
    """A stream of interactions and how to show it."""

    plan: Plan
    title: str

    def next(self) -> Interaction | None:
        """The next one; None at the end."""

    def shift(self) -> bool:
        """Change what everybody likes; False where the source has no say in that."""


class ShopperSource:
    """Simulated shoppers, who act now. Event ids are new in each run, in case the broker and Redis are not."""

    def __init__(self, seed: int, shifts: int = 0) -> None:
        """shifts: of taste, that were before."""
        self.plan = Plan(16_000, 800.0, 200.0, 75.0)
        self.title = "simulated shoppers"
        self._shoppers = Shoppers(seed=seed, shifts=shifts)
        self._run = f"{time.time_ns() // 1_000_000:x}"
        self._count = 0

    def next(self) -> Interaction | None:
        """Never None: they shop for ever."""
        action = self._shoppers.next()
        self._count += 1
        now = time.time_ns() // 1_000_000
        event_id = f"{self._run}-{self._count:x}"
        return Interaction(action.user_id, action.item_id, action.event_type, now, event_id, action.session_id)

    def shift(self) -> bool:
        """Other habits from the next action on."""
        self._shoppers.shift()
        return True

    @property
    def shifts(self) -> int:
        """How often taste has shifted."""
        return self._shoppers.shifts

    def shift_to(self, shifts: int) -> None:
        """The habits after so many shifts, from the next action on."""
        self._shoppers.shift_to(shifts)


class LogSource:
    """A log in time order, with its own times. Raises LogUnreadable."""

    def __init__(self, path: str) -> None:
        log = load_log(path)
        if log.events.height < _LEAST_EVENTS:
            raise LogUnreadable(f"{path}: {log.events.height:,} events are too few for the demo; {_LEAST_EVENTS:,} do")
        history = min(_HISTORY, int(log.events.height * _LARGEST_SHARE))
        self.plan = Plan(history, 12_000.0, 100.0, 150.0, ("--epochs", "2", *_AS_SERVED))
        self.title = f"{path} ({log.events.height:,} events)"
        self._events = interactions(log.events.with_row_index("row"))

    def next(self) -> Interaction | None:
        """The next row of the log."""
        return next(self._events, None)

    def shift(self) -> bool:
        """What is logged is logged."""
        return False
