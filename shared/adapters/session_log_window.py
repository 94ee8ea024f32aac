"""The newest events of the session log as one frame."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from shared.adapters.session_log_frames import Wishes, empty_frame
from shared.adapters.session_log_store import Listing, LogStore
from shared.core.log_files import Part, parts
from shared.core.session_log_port import WINDOW_COLUMNS

_COLUMNS = [*WINDOW_COLUMNS, "event_id", "partition", "offset"]
_ORDER = ["ts", "partition", "offset"]
_NEVER = -(2**62)

Times = npt.NDArray[np.int64]


def read_window(store: LogStore, listing: Listing, newest_events: int | None, since_ms: int | None) -> pl.DataFrame:
    """See SessionLog.window. First the times alone, to find where the window begins; then the rows that lie in it."""
    wishes = Wishes(store.wishes(listing.forgets).values())
    chosen = parts(listing.files)
    since = _NEVER if since_ms is None else since_ms
    if newest_events is not None:
        chosen, since = _beginning(store, chosen, wishes, newest_events, since)
    frames, rows = [empty_frame().select(_COLUMNS)], 0
    for part in chosen:
        frame = store.read(part.file, _COLUMNS).filter(_counting(part, wishes) & (pl.col("ts") >= since))
        frames.append(frame)
        rows += frame.height
        if newest_events is not None and rows > 2 * newest_events:  # many events at the very time of the beginning
            frames = [_sorted(frames).tail(newest_events)]
            rows = frames[0].height
    window = _sorted(frames)
    if newest_events is not None:
        window = window.tail(newest_events)
    repeated = pl.col("event_id").is_not_null() & ~pl.struct("user_id", "event_id").is_first_distinct()
    return window.filter(~repeated).select(WINDOW_COLUMNS)


def _sorted(frames: list[pl.DataFrame]) -> pl.DataFrame:
    return pl.concat(frames).sort(_ORDER, maintain_order=True)


def _counting(part: Part, wishes: Wishes) -> pl.Expr:
    keep = wishes.keep(part.file.life)
    counts = pl.col("offset") >= part.start
    return counts if keep is None else counts & keep


def _beginning(
    store: LogStore, chosen: list[Part], wishes: Wishes, newest_events: int, since: int
) -> tuple[list[Part], int]:
    """(the parts that reach into the window, the time at which it begins)."""
    newest = np.zeros(0, np.int64)
    last: list[tuple[Part, int]] = []
    for part in chosen:
        counting = store.skim(part.file, ["ts", "user_id", "offset"]).filter(_counting(part, wishes))
        times = counting.filter(pl.col("ts") >= since)["ts"].to_numpy()
        if len(times):
            last.append((part, int(times.max())))
            newest = np.concatenate([newest, times])
        if len(newest) > 2 * newest_events:
            newest = _largest(newest, newest_events)
    newest = _largest(newest, newest_events)
    begins = int(newest.min()) if len(newest) else since
    return [part for part, latest in last if latest >= begins and newest_events], begins


def _largest(times: Times, count: int) -> Times:
    if len(times) <= count:
        return times
    return np.partition(times, len(times) - count)[len(times) - count :] if count else times[:0]
