"""The layouts of interaction logs that are known by name, and how to tell them apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

TimeUnit = Literal["auto", "s", "ms", "day+ms"]
"""auto: text is ISO 8601, and a number's unit follows from its size; day+ms: a date, and ms since it in ``offset``."""


@dataclass(frozen=True, slots=True)
class LogFormat:
    """One layout. ``columns``: our column -> the file's; session_id, user_id and event_type may be absent."""

    name: str
    columns: Mapping[str, str]
    event_type: str = "view"
    """Of every event, where the file has no column for it."""
    time_unit: TimeUnit = "auto"
    separator: str = ","
    header: Sequence[str] | None = None
    """Column names of a file that has none; None: its first line holds them."""


def _driftwood(ts: str) -> dict[str, str]:
    names = ("session_id", "user_id", "item_id", "event_type")
    return {**{name: name for name in names}, "ts": ts}


_MOVIELENS = {"user_id": "userId", "item_id": "movieId", "ts": "timestamp"}
_DIGINETICA = {"session_id": "sessionId", "user_id": "userId", "item_id": "itemId", "ts": "eventdate"}

FORMATS: dict[str, LogFormat] = {
    known.name: known
    for known in (
        LogFormat("driftwood", _driftwood("timestamp_ms"), time_unit="ms"),
        LogFormat("driftwood-topic", _driftwood("ts"), time_unit="ms"),
        LogFormat(
            "retailrocket",
            {"user_id": "visitorid", "item_id": "itemid", "ts": "timestamp", "event_type": "event"},
            time_unit="ms",
        ),
        LogFormat(
            "yoochoose",
            {"session_id": "session", "item_id": "item", "ts": "timestamp"},
            event_type="click",
            header=("session", "timestamp", "item", "category"),
        ),
        LogFormat(
            "yoochoose-buys",
            {"session_id": "session", "item_id": "item", "ts": "timestamp"},
            event_type="buy",
            header=("session", "timestamp", "item", "price", "quantity"),
        ),
        LogFormat("diginetica", {**_DIGINETICA, "offset": "timeframe"}, time_unit="day+ms", separator=";"),
        LogFormat(
            "diginetica-2016",
            {
                "session_id": "session_id",
                "user_id": "user_id",
                "item_id": "item_id",
                "ts": "eventdate",
                "offset": "timeframe",
            },
            time_unit="day+ms",
            separator=";",
        ),
        LogFormat("movielens", _MOVIELENS, event_type="rating", time_unit="s"),
        LogFormat(
            "movielens-dat",
            _MOVIELENS,
            event_type="rating",
            time_unit="s",
            separator="::",
            header=("userId", "movieId", "rating", "timestamp"),
        ),
        LogFormat(
            "movielens-100k",
            _MOVIELENS,
            event_type="rating",
            time_unit="s",
            separator="\t",
            header=("userId", "movieId", "rating", "timestamp"),
        ),
    )
}

FAMILIES = {
    "movielens": ("movielens", "movielens-dat", "movielens-100k"),
    "diginetica": ("diginetica", "diginetica-2016"),
    "yoochoose": ("yoochoose", "yoochoose-buys"),
    "driftwood": ("driftwood", "driftwood-topic"),
}
"""A name that a user gives -> the layouts that it may mean."""


def by_columns(names: Sequence[str], among: Sequence[LogFormat]) -> LogFormat | None:
    """The first layout with a header whose item and time columns, and a session or user column, are all in the file."""
    there = set(names)
    for known in among:
        columns = known.columns
        needed = {columns["item_id"], columns["ts"], *([columns["offset"]] if "offset" in columns else [])}
        who = {columns[name] for name in ("session_id", "user_id") if name in columns}
        if known.header is None and needed <= there and who & there:
            return known
    return None


def by_first_line(line: str, among: Sequence[LogFormat]) -> LogFormat | None:
    """The layout without a header that the first line fits: as many fields, and a time where it belongs."""
    for known in among:
        if known.header is None:
            continue
        fields = line.strip("\r\n").split(known.separator)
        if len(fields) != len(known.header):
            continue
        row = dict(zip(known.header, fields, strict=True))
        time = row["timestamp"]
        if time.isdigit() if known.time_unit == "s" else (len(time) >= 19 and time[4] == "-" and time[10] == "T"):
            return known
    return None
