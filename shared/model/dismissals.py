"""Items that users turned down, and where in their sessions they did: negatives that training takes at their word."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

Ints = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Dismissals:
    """Pair ``k``: a user whose latest event was the one at ``after[k]`` dismissed the item ``items[k]``."""

    after: Ints
    """(K,) int64 places in Sessions.items, ascending"""
    items: Ints
    """(K,) int32 item indexes"""

    def __len__(self) -> int:
        return len(self.after)

    def moved(self, places: Ints, items: Ints | None = None) -> Dismissals:
        """places (events,): the new place of each old one, -1: none, then its dismissals are gone. items: (K,) new
        indexes of the dismissed items."""
        after = places[self.after]
        order = np.argsort(after, kind="stable")
        order = order[after[order] >= 0]
        return Dismissals(after[order], (self.items if items is None else items)[order])

    def known(self, items: int) -> Dismissals:
        """Those of items below the index ``items``."""
        kept = self.items < items
        return Dismissals(self.after[kept], self.items[kept])

    def at(self, places: Ints) -> tuple[Ints, Ints]:
        """places (N,) -> (which of them (K',), dismissed items (K',) int64), for every dismissal at one of them."""
        first = np.searchsorted(self.after, places, side="left")
        count = np.searchsorted(self.after, places, side="right") - first
        which = np.repeat(np.arange(len(places)), count)
        steps = np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)
        return which, self.items[first[which] + steps].astype(np.int64)


def no_dismissals() -> Dismissals:
    """None at all."""
    return Dismissals(np.zeros(0, np.int64), np.zeros(0, np.int32))


def after_events(code: Ints, turned_down: Ints, items: Ints) -> Dismissals:
    """Dismissals among the rows of sessions, which lie end to end in time order.

    code (R,): the session of each row; turned_down (R,) bool: rows that are dismissals and no events; items (R,). A
    place counts events only. A dismissal before the session's first event belongs to no state, and is left out.
    """
    if not turned_down.any():
        return no_dismissals()
    events = np.cumsum(~turned_down)  # up to and with this row
    begins = np.flatnonzero(np.diff(code, prepend=code[:1] - 1))
    before = np.repeat((events - ~turned_down)[begins], np.diff(np.append(begins, len(code))))
    kept = turned_down & (events > before)
    return Dismissals(events[kept] - 1, items[kept].astype(np.int32))


def is_dismissal(log: pl.DataFrame, types: tuple[str, ...]) -> pl.Expr:
    """Whether a row of the log is of one of these types of events."""
    return pl.col("event_type").is_in(types) if types and "event_type" in log.columns else pl.lit(False)
