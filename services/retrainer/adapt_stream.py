"""A log as integer arrays in time order, for a replay: who chose what when, and which events are tested."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from shared.core.errors import LogUnreadable
from shared.model.dataset import Sessions

Ints = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Stream:
    """N events in time order. Items are numbered by first appearance, so a model of the first n events knows exactly
    the items below ``seen[n - 1]``: catalogues that grow are prefixes of one numbering."""

    users: Ints
    """(N,) int32"""
    items: Ints
    """(N,) int32"""
    ts: Ints
    """(N,) int64, ms since the epoch"""
    tested: Ints
    """(N,) bool: every event of a session but the first"""
    seen: Ints
    """(N,) int32: different items up to and including this event"""
    by_user: Ints
    """(N,) int32: items again, user after user"""
    place: Ints
    """(N,) int64: where each event is in ``by_user``"""
    first: Ints
    """(users,) int64: where each user begins in ``by_user``"""

    def __len__(self) -> int:
        return len(self.users)

    def history(self, event: Ints, limit: int) -> tuple[Ints, Ints]:
        """The user's last ``limit`` items before each of E events: (E, limit) int32 aligned left, (E,) lengths."""
        end = self.place[event]
        begin = np.maximum(self.first[self.users[event]], end - limit)
        lengths = end - begin
        at = np.minimum(begin[:, None] + np.arange(limit), len(self.by_user) - 1)
        return self.by_user[at], lengths

    def window(self, end: int, events: int) -> Sessions:
        """The newest ``events`` events before event number ``end``, a sequence for each user who has any."""
        begin = max(0, end - events)
        users = self.users[begin:end]
        order = np.argsort(users, kind="stable")
        changes = np.flatnonzero(np.diff(users[order])) + 1
        starts = np.concatenate([[0], changes, [end - begin]]).astype(np.int64)
        times = self.ts[begin:end][order]
        return Sessions(self.items[begin:end][order], starts, times[starts[1:] - 1])

    def slices(self, begin: int, span_ms: int, most: int) -> Iterator[tuple[int, int]]:
        """Consecutive event ranges from ``begin`` on that each lie within one span of the clock; never over ``most``
        events."""
        span = self.ts // span_ms
        changes = np.flatnonzero(np.diff(span[begin:])) + 1 + begin
        edges = [begin, *changes.tolist(), len(self)]
        for start, stop in pairwise(edges):
            for at in range(start, stop, most):
                yield at, min(at + most, stop)


def stream_of(log: pl.DataFrame, source: str) -> Stream:
    """log: sorted by ts, with session_id (or null), user_id, item_id, ts. Raises LogUnreadable for too little."""
    users = _codes(log["user_id"])
    session = log.select(pl.coalesce("s" + pl.col("session_id"), "u" + pl.col("user_id")).alias("key"))["key"]
    items = _codes(log["item_id"])
    tested = ~session.is_first_distinct().to_numpy()
    if not tested.any():
        raise LogUnreadable(f"{source}: no session of two events or more: there is no next item to predict")
    order = np.argsort(users, kind="stable")
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return Stream(
        users=users,
        items=items,
        ts=log["ts"].to_numpy().astype(np.int64),
        tested=tested,
        seen=np.maximum.accumulate(items) + 1,
        by_user=items[order],
        place=place,
        first=np.searchsorted(users[order], np.arange(int(users.max()) + 1)),
    )


def _codes(ids: pl.Series) -> Ints:
    """(N,) int32, numbered by first appearance."""
    frame = ids.to_frame("id")
    distinct = frame.select(pl.col("id").unique(maintain_order=True)).with_row_index("code")
    return frame.join(distinct, on="id", how="left", maintain_order="left")["code"].to_numpy().astype(np.int32)
