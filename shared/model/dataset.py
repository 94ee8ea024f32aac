"""Sessions as contiguous integer arrays, and the batches for truncated backpropagation through time.

A batch is a set of sessions of about the same length, advanced together in windows of ``truncate`` steps; the hidden
state is carried from one window of a batch to the next, and starts at zero with each batch. So every session no longer
than a window is trained through and through, and longer ones lose only the gradient at the seams, never the state.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import polars as pl

from shared.model.dismissals import Dismissals, Ints, after_events, is_dismissal, no_dismissals


@dataclass(frozen=True, slots=True)
class Sessions:
    """All sessions end to end. Session ``s`` is ``items[starts[s]:starts[s + 1]]``, in time order."""

    items: Ints
    """(events,) int32 item indexes"""
    starts: Ints
    """(sessions + 1,) int64"""
    ended_at: Ints
    """(sessions,) int64: time of the last event, ms since the epoch"""
    dismissals: Dismissals = field(default_factory=no_dismissals)

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> Ints:
        """(sessions,) events in each session."""
        return np.diff(self.starts)

    @property
    def pairs(self) -> int:
        """(input, target) pairs: every event but the first of a session is a target."""
        return int(np.maximum(self.lengths - 1, 0).sum())

    def select(self, chosen: Ints) -> Sessions:
        """The chosen sessions (a mask or positions), in order."""
        positions = np.arange(len(self))[chosen]
        lengths = self.lengths[positions]
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        spans = _spans(self.starts[positions], lengths)
        dismissals = self.dismissals
        if len(dismissals):
            places = np.full(len(self.items), -1, np.int64)
            places[spans] = np.arange(len(spans))
            dismissals = dismissals.moved(places)
        return Sessions(self.items[spans], starts, self.ended_at[positions], dismissals)

    def newest(self, share: float) -> Ints:
        """(n,) positions of the sessions that ended last, with this share of the pairs or a little more."""
        order = np.argsort(-self.ended_at, kind="stable")
        pairs = np.cumsum(np.maximum(self.lengths - 1, 0)[order])
        return np.sort(order[: int(np.searchsorted(pairs, share * pairs[-1])) + 1 if len(pairs) else 0])


def _spans(firsts: Ints, lengths: Ints) -> Ints:
    """firsts (S,), lengths (S,) -> the indexes firsts[0], firsts[0] + 1, ... of all spans, end to end."""
    offsets = np.cumsum(lengths) - lengths
    return np.repeat(firsts - offsets, lengths) + np.arange(int(lengths.sum()))


def catalogue_of(log: pl.DataFrame, known: Sequence[str] = ()) -> list[str]:
    """Item ids in index order: the known ones first, then the log's others, most popular first (ties by id)."""
    counts = log.group_by("item_id").len().sort(["len", "item_id"], descending=[True, False])
    if known:
        counts = counts.filter(~pl.col("item_id").is_in(pl.Series(known, dtype=pl.String).implode()))
    return [*known, *counts["item_id"].to_list()]


def build_sessions(
    log: pl.DataFrame, catalogue: Sequence[str], sequence: str = "auto", dismissing: tuple[str, ...] = ()
) -> Sessions:
    """Sessions of a log that is sorted by time, with columns session_id, user_id (str or null), item_id, ts (ms).

    sequence: what one training sequence is: "session", "user" (all of a user's sessions, one after the other), or
    "auto": the session where the event has one, else the user. Events of items outside the catalogue are left out, as
    are events with neither a session nor a user. Sessions come in the order of their first event. dismissing: types of
    events (column event_type) that are no events of a session but dismissals in it.
    """
    session, user = pl.col("session_id"), pl.col("user_id")
    key = {
        "auto": pl.coalesce("s" + session, "u" + user),
        "session": session,
        "user": pl.coalesce("u" + user, "s" + session),
    }[sequence]
    index = pl.DataFrame({"item_id": pl.Series(list(catalogue), dtype=pl.String)}).with_row_index("item")
    rows = log.select(key.alias("key"), "item_id", "ts", is_dismissal(log, dismissing).alias("dismissed"))
    rows = rows.join(index, on="item_id", how="inner", maintain_order="left").filter(pl.col("key").is_not_null())
    # Dense codes in order of first appearance; a stable sort by them keeps time order within a session.
    codes = rows.filter(~pl.col("dismissed")).select(pl.col("key").unique(maintain_order=True)).with_row_index("code")
    rows = rows.join(codes, on="key", how="inner", maintain_order="left")
    code = rows["code"].to_numpy().astype(np.int64)
    order = np.argsort(code, kind="stable")
    code, turned_down = code[order], rows["dismissed"].to_numpy()[order]
    items = rows["item"].to_numpy()[order].astype(np.int32)
    dismissals = after_events(code, turned_down, items)
    if turned_down.any():
        code, items, order = code[~turned_down], items[~turned_down], order[~turned_down]
    if not len(items):
        return Sessions(np.zeros(0, np.int32), np.zeros(1, np.int64), np.zeros(0, np.int64))
    changes = np.flatnonzero(np.diff(code)) + 1
    starts = np.concatenate([[0], changes, [len(items)]]).astype(np.int64)
    return Sessions(items, starts, rows["ts"].to_numpy()[order][starts[1:] - 1].astype(np.int64), dismissals)


def without_new_items(sessions: Sessions, known: int) -> Sessions:
    """The sessions without events of items from index ``known`` on; those that have no event left are gone."""
    return keep_events(replace(sessions, dismissals=sessions.dismissals.known(known)), sessions.items < known)


def keep_events(sessions: Sessions, kept: Ints) -> Sessions:
    """kept (events,) bool: only those; sessions that have none left are gone, dismissals move to the last one left."""
    session = np.repeat(np.arange(len(sessions)), sessions.lengths)
    lengths = np.bincount(session[kept], minlength=len(sessions))
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths[lengths > 0])])
    dismissals = sessions.dismissals
    if len(dismissals):
        upto = np.cumsum(kept)
        before = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])[session]
        dismissals = dismissals.moved(np.where(upto > before, upto - 1, -1))
    return Sessions(sessions.items[kept], starts, sessions.ended_at[lengths > 0], dismissals)


def split_newest(sessions: Sessions, share: float) -> tuple[Sessions, Sessions]:
    """(older, newest): newest are the sessions that ended last, with about ``share`` of the (input, target) pairs."""
    by_end = np.argsort(sessions.ended_at, kind="stable")
    pairs = np.cumsum(np.maximum(sessions.lengths - 1, 0)[by_end])
    newest = np.zeros(len(sessions), bool)
    if len(sessions):
        newest[by_end[pairs > pairs[-1] * (1 - share)]] = True
    return sessions.select(~newest), sessions.select(newest)


@dataclass(frozen=True, slots=True)
class Split:
    """A log cut into an older and a newest part, over one catalogue in which the older part's items come first."""

    older: Sessions
    newest: Sessions
    catalogue: list[str]
    known: int
    """Items that occur in the older part: the first so many of the catalogue, most popular first."""


def hold_out(sessions: Sessions, catalogue: Sequence[str], share: float) -> Split:
    """``split_newest``, with the items numbered anew so that a model of the older part can grow to the whole."""
    older, newest = split_newest(sessions, share)
    counts = np.bincount(older.items, minlength=len(catalogue))
    order = np.argsort(-counts, kind="stable")  # unseen ones, count 0, come last and keep their order
    number = np.empty(len(order), np.int32)
    number[order] = np.arange(len(order), dtype=np.int32)

    def renumbered(part: Sessions) -> Sessions:
        dismissals = Dismissals(part.dismissals.after, number[part.dismissals.items])
        return Sessions(number[part.items], part.starts, part.ended_at, dismissals)

    names = [catalogue[i] for i in order]
    return Split(renumbered(older), renumbered(newest), names, int((counts > 0).sum()))


@dataclass(frozen=True, slots=True)
class Window:
    """``steps`` steps of some sessions side by side, longest first; a padded place holds item 0 and is not valid."""

    inputs: Ints
    """(T, B) int64"""
    targets: Ints
    """(T, B) int64"""
    valid: Ints
    """(T, B) bool: True where there is an (input, target) pair; a prefix of each column"""
    places: Ints
    """(T, B) int64: where in Sessions.items the input is; the target is the one after it. Any, where not valid"""
    fresh: bool
    """True: these sessions begin here, from the zero state. False: they are the first B of the window before."""


def windows(
    sessions: Sessions,
    batch_events: int,
    truncate: int,
    pool_batches: int = 64,
    seed: Sequence[int] | None = None,
    chosen: Ints | None = None,
    longest: int | None = None,
) -> Iterator[Window]:
    """Windows that hold every (input, target) pair exactly once. seed: None for the order of the log, unshuffled;
    chosen: positions of the sessions that take part, in order; None: all; longest: what has more pairs is cut, see
    ``in_company``; None: nothing is."""
    pairs = np.maximum(sessions.lengths - 1, 0)
    order = np.flatnonzero(pairs) if chosen is None else chosen[pairs[chosen] > 0]
    firsts, pairs = _pieces(sessions.starts[order], pairs[order], longest)
    rng = np.random.default_rng(seed) if seed is not None else None
    order = np.arange(len(firsts)) if rng is None else rng.permutation(len(firsts))
    share = np.minimum(pairs[order], truncate)  # what the session adds to its batch's first window
    pool_of = (np.cumsum(share) - share) // (batch_events * pool_batches)
    for pool in np.split(order, np.flatnonzero(np.diff(pool_of)) + 1):
        if not len(pool):
            continue
        pool = pool[np.argsort(-pairs[pool], kind="stable")]
        size = np.minimum(pairs[pool], truncate)
        batch_of = (np.cumsum(size) - size) // batch_events
        batches = np.split(pool, np.flatnonzero(np.diff(batch_of)) + 1)
        ranks = rng.permutation(len(batches)) if rng is not None else range(len(batches))
        for rank in ranks:
            yield from _windows_of(sessions, firsts[batches[rank]], pairs[batches[rank]], truncate)


def in_company(sessions: Sessions, batch_events: int, truncate: int) -> int:
    """How many pairs of one session are learnt in a row. What is longer is cut, and each piece begins anew.

    As many as so many sessions have that they fill a window; at least eight windows. A longer one, a robot's, would
    have its batch for itself for most of its length: each of its windows would change the model as much as a window of
    many people does.
    """
    lanes = max(1, batch_events // truncate)
    pairs = np.maximum(sessions.lengths - 1, 0)
    reached = int(np.partition(pairs, len(pairs) - lanes)[len(pairs) - lanes]) if len(pairs) >= lanes else 0
    return max(8 * truncate, reached)


def _pieces(firsts: Ints, pairs: Ints, longest: int | None) -> tuple[Ints, Ints]:
    """firsts, pairs (S,): where each begins, and what it holds -> the same of pieces of at most ``longest`` pairs."""
    if longest is None or not (pairs > longest).any():
        return firsts, pairs
    counts = -(-pairs // longest)
    before = longest * (np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts))
    return np.repeat(firsts, counts) + before, np.minimum(np.repeat(pairs, counts) - before, longest)


def _windows_of(sessions: Sessions, firsts: Ints, pairs: Ints, truncate: int) -> Iterator[Window]:
    """firsts (B,) where the sessions, longest first, begin; pairs (B,) their (input, target) pairs."""
    last = len(sessions.items) - 1
    for begin in range(0, int(pairs[0]), truncate):
        active = int(np.searchsorted(-pairs, -begin, side="left"))  # sessions with more than ``begin`` pairs
        steps = min(truncate, int(pairs[0]) - begin)
        at = begin + np.arange(steps)[:, None]  # (T, 1)
        valid = at < pairs[:active]  # (T, B)
        places = np.minimum(firsts[:active] + at, last)
        inputs = np.where(valid, sessions.items[places], 0).astype(np.int64)
        targets = np.where(valid, sessions.items[np.minimum(places + 1, last)], 0).astype(np.int64)
        yield Window(inputs, targets, valid, places, fresh=begin == 0)
