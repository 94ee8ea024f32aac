"""The part of the session log that a training reads: as much as fits, cut into what is learnt and what is asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import polars as pl

from services.retrainer.budget import LEAST_EVENTS, MemoryBudget
from services.retrainer.recipe import holdout_share, learnable
from shared.core.errors import SettingsInvalid
from shared.core.events import EventRules
from shared.model.dismissals import is_dismissal
from shared.model.holdout import Newest, cut_newest
from shared.model.network import Weights

SEQUENCE = "user"
"""All of a user's sessions one after the other, as states are carried in service."""
NEW_SHARE = 0.25
"""Of what came since the champion learnt: so much is asked about, the rest is learnt first. Were it more, a challenger
would be asked about a change of taste before it has seen any of it; were it less, chance would decide."""
LEAST_ASKED = 500
WARM_EVENTS = 50_000
"""A champion learns on from what it has not learnt, and from so many events at least. More is not better: on Globo the
30,000 newest give .646, 50,000 give .628, 350,000 give .590, in 3 to 4 epochs."""
DRIFT_EVENTS = 20_000
"""The same where a change of taste is known, or four times what came after it, where that is more."""


class SessionWindow(Protocol):
    """As much of the SessionLog port as a training needs."""

    uri: str

    def window(self, newest_events: int | None = None, since_ms: int | None = None) -> pl.DataFrame:
        """See SessionLog."""


@dataclass(frozen=True, slots=True)
class Champion:
    """The version in service."""

    version: str
    weights: Weights
    items: list[str]
    newest_event: int
    """ms since the epoch: later ones it has not learnt; 0: unknown"""

    @property
    def width(self) -> int:
        """Of its hidden state."""
        return int(self.weights["item_embedding"].shape[1])


@dataclass(frozen=True, slots=True)
class Bounds:
    """By time, ms, both included; None: no bound."""

    since: int | None = None
    until: int | None = None


@dataclass(frozen=True, slots=True)
class Material:
    """What a training works on. ``told``: for people and for the manifest."""

    newest: Newest
    bounds: Bounds
    told: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TooLittle:
    """Why there is nothing to train on."""

    told: Mapping[str, Any]


def read_material(
    log: SessionWindow,
    rules: EventRules,
    champion: Champion | None,
    bounds: Bounds,
    *,
    changed_at: int = 0,
    events: int,
    least_sessions: int,
    memory: MemoryBudget,
    width: int,
    asked: int,
    say: Callable[[str], None],
) -> Material | TooLittle:
    """events: of the log, at most; asked: newest events to be asked about, at most; changed_at: when taste began to
    change, ms, 0: unknown. Raises Unavailable, SettingsInvalid."""
    items = len(champion.items) if champion else 0
    room = memory.events(items, width)
    frame, dismissing = _read(log, rules, bounds, min(events, room), room)
    if champion is not None and champion.width == width:
        frame = frame.tail(_worth_reading(frame["ts"].to_numpy(), champion.newest_event, changed_at))
    before = frame.height
    frame = _fitting(frame, champion, memory, width)
    shrunk = frame.height < before or (room < events and before >= room)
    sessions = count_sessions(frame, dismissing)
    told: dict[str, Any] = {"events": frame.height, "sessions": sessions}
    if sessions < least_sessions:
        outcome = "too few sessions" if frame.height else "empty window"
        return TooLittle({"outcome": outcome, **told, "needed": least_sessions})
    if shrunk:
        told |= {"shrunk_to": frame.height, "shrunk_from": events}
        say(f"the window holds {frame.height:,} events instead of {events:,}: more do not fit in TRAIN_MEMORY_MB")
    ts = frame["ts"].to_numpy()
    learnt_until = max(champion.newest_event if champion else 0, changed_at)
    rows = rows_to_ask(ts, learnt_until, asked)
    newest = cut_newest(frame, rows, champion.items if champion else [], SEQUENCE, dismissing)
    if not newest.older.pairs or not newest.asked.any():
        return TooLittle({"outcome": "too few sessions", **told, "needed": least_sessions})
    read = Bounds(int(ts[0]), int(ts[-1]))
    told |= {"since": read.since, "until": read.until, "dismissals": len(newest.older.dismissals)}
    return Material(newest, read, told)


def _read(
    log: SessionWindow, rules: EventRules, bounds: Bounds, wanted: int, most: int
) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """The newest events to learn from, about ``wanted``. Where many others lie between them, such as impressions, more
    of the log is read, but never more than ``most`` events."""
    rows, seen = wanted, -1
    while True:
        raw = log.window(newest_events=rows, since_ms=bounds.since)
        within = raw if bounds.until is None else raw.filter(pl.col("ts") <= bounds.until)
        frame, dismissing = learnable(within, rules)
        # Fewer rows than were asked for do not tell that there are no more: repeated events are taken out.
        if raw.height <= seen or rows >= most or frame.height >= 0.8 * wanted:
            return frame.tail(wanted), dismissing
        seen = raw.height
        rows = min(most, 2 * rows * wanted // max(frame.height, wanted // 32))


def rows_to_ask(ts: np.ndarray, learnt_until: int, most: int) -> int:
    """ts (R,) ascending. How many of the newest rows are kept from training, to ask about them. learnt_until: ms, 0:
    nothing was learnt yet."""
    total = len(ts)
    if learnt_until:
        wanted = max(LEAST_ASKED, round(_after(ts, learnt_until) * NEW_SHARE))
    else:
        wanted = round(total * holdout_share(total))
    return min(most, max(1, wanted), total // 2)


def _fitting(frame: pl.DataFrame, champion: Champion | None, memory: MemoryBudget, width: int) -> pl.DataFrame:
    """The newest rows that fit beside their own items. Raises SettingsInvalid where the champion's leave no room."""
    known = len(champion.items) if champion else 0
    memory.events(known, width)
    while frame.height > LEAST_EVENTS:
        try:
            room = memory.events(known + _new_items(frame, champion), width)
        except SettingsInvalid:
            room = 0
        if frame.height <= room:
            break
        frame = frame.tail(max(room, frame.height * 9 // 10))  # a shorter window has fewer items, too
    return frame


def _worth_reading(ts: np.ndarray, learnt_until: int, changed_at: int) -> int:
    """ts (R,) ascending. How many of the newest rows a champion should learn from. ms; 0: unknown."""
    new = _after(ts, learnt_until) if learnt_until else len(ts)
    if not changed_at:
        return max(WARM_EVENTS, new)
    return max(DRIFT_EVENTS, min(4 * _after(ts, changed_at), max(WARM_EVENTS, new)))


def _after(ts: np.ndarray, at: int) -> int:
    return len(ts) - int(np.searchsorted(ts, at, side="right"))


def count_sessions(frame: pl.DataFrame, dismissing: tuple[str, ...]) -> int:
    """Sessions of two events or more; where an event names none, the user's events are one."""
    key = pl.coalesce("s" + pl.col("session_id"), "u" + pl.col("user_id"))
    return int(frame.filter(~is_dismissal(frame, dismissing)).group_by(key).len().filter(pl.col("len") > 1).height)


def _new_items(frame: pl.DataFrame, champion: Champion | None) -> int:
    seen = frame.select(pl.col("item_id").unique())
    if champion is None:
        return seen.height
    return seen.filter(~pl.col("item_id").is_in(pl.Series(champion.items, dtype=pl.String).implode())).height
