"""The session log: every accepted interaction, once, in files named by the offsets that they cover.

The log itself says where reading goes on, so no crash can part what is in it from what is taken to be in it. An
event's place is (partition, incarnation, offset): a file may be written twice, ranges may overlap, and still each
event is read once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import msgspec

from shared.core.events import Interaction
from shared.core.ports import Record

if TYPE_CHECKING:
    import polars as pl

WINDOW_COLUMNS = ("session_id", "user_id", "item_id", "ts", "event_type")
"""What ``window`` gives: the columns of any log that training reads."""


class Cut(msgspec.Struct, frozen=True, array_like=True):
    """Of one partition, what a forgotten user loses: all below offset ``end``, or, where that is None, everything."""

    partition: int
    incarnation: int
    end: int | None


class Forgotten(msgspec.Struct, frozen=True):
    """A user's wish, in terms of the log. What lies outside the cuts was published later and stays."""

    user_id: str
    requested_at: int
    """ms since the epoch"""
    cuts: list[Cut]


@dataclass(frozen=True, slots=True)
class LogBatch:
    """What was accepted of one partition in the offsets ``first`` to below ``next``: maybe not every one of them."""

    partition: int
    incarnation: int
    first: int
    next: int
    events: Sequence[Interaction]
    offsets: Sequence[int]
    """Ascending, one for each event."""
    logged_ms: int
    """Now, ms since the epoch: its day is where the file goes. Records carry whatever time their producer likes."""


@dataclass(frozen=True, slots=True)
class LogSummary:
    """What the log holds."""

    files: int
    bytes: int
    damaged: int
    """Files that could not be read and were set aside."""
    oldest_day: str | None
    """YYYY-MM-DD, by the time of logging."""
    newest_day: str | None


@dataclass(frozen=True, slots=True)
class Upkeep:
    """What an upkeep of the log came to."""

    compacted: int = 0
    """Files merged into larger ones."""
    expired: int = 0
    """Files removed for their age, or to keep to the size."""


def idle() -> None:
    """Nothing."""


class SessionLog(Protocol):
    """All methods raise Unavailable; after that, the same call can be made again. Safe for several processes."""

    uri: str

    def incarnation(self, partition: int, life: str, end: int) -> int:
        """Names the present life of a partition, as Progress.incarnation_id does.

        life: the topic's name for it; end: the next offset to be written. Where the log has events from offsets beyond
        the end, the offsets began anew within that life.
        """

    def missing(self, partition: int, incarnation: int, first: int, end: int) -> list[tuple[int, int | None]]:
        """What is to be read, ascending: ranges (from, to), the last one (from, None).

        first, end: what the broker has, as in InteractionSource.bounds. All but the last are ranges of damaged files.
        """

    def append(self, batch: LogBatch) -> None:
        """Add a batch, all or nothing. Events of forgotten users are left out."""

    def forget(self, forgotten: Forgotten) -> None:
        """Keep this wish: from now on ``window`` and ``append`` heed it. Doing it twice is doing it once."""

    def known_lives(self) -> set[tuple[int, int]]:
        """(partition, incarnation) of everything in the log."""

    def apply_forgets(self, beat: Callable[[], None] = idle) -> int:
        """Write the files anew that hold events of forgotten users; returns the events removed.

        beat: called every few seconds, to show that work goes on.
        """

    def release_forgets(self, kept: Mapping[int, tuple[int, int]], before_ms: int) -> int:
        """Drop wishes that were fulfilled and that nothing can undo; returns how many were dropped.

        kept: partition -> (incarnation, first offset that can still be read); one that is not named may hold
        anything. A wish may go if it was made before ``before_ms`` and the broker has none of what it cuts off.
        """

    def upkeep(self, now_ms: int, beat: Callable[[], None] = idle) -> Upkeep:
        """Merge small files, for a few seconds, and remove what is too old or too much. beat: as above."""

    def summary(self) -> LogSummary:
        """From the names and sizes of the files."""

    def window(self, newest_events: int | None = None, since_ms: int | None = None) -> pl.DataFrame:
        """The newest events by their own time ``ts``, at most so many, and none before ``since_ms``.

        Columns WINDOW_COLUMNS (strings; ts int64, ms since the epoch; session_id may be null), sorted by ts, equal
        times by partition and offset. Of events sent twice with one event_id, the first. Holds no more than the
        window and one file in memory.
        """


class ForgetsReader(Protocol):
    """The ``forgets`` topic, read in a group of its own. Raises TopicMissing, Unavailable."""

    def poll(self, timeout_s: float, max_records: int) -> list[Record]:
        """The next records."""

    def rewind(self, records: Sequence[Record]) -> None:
        """Bring these again."""

    def commit(self, records: Sequence[Record]) -> None:
        """Never again these, nor those before them."""

    def lag(self) -> int:
        """Records that were not committed yet, asked of the broker now."""

    def close(self) -> None:
        """Leave the group."""


class SessionLogHooks(Protocol):
    """What the logger tells its metrics."""

    def logged(self, outcome: str, count: int) -> None:
        """Records that were "logged" or "invalid"."""

    def flushed(self, seconds: float) -> None:
        """A file was written."""

    def lag(self, records: Mapping[int, int]) -> None:
        """partition -> records not read yet."""

    def upkept(self, done: Upkeep, summary: LogSummary) -> None:
        """After each upkeep."""

    def forgot(self, events: int) -> None:
        """Events removed from files for forgotten users."""


def can_be_read(cut: Cut, kept: Mapping[int, tuple[int, int]]) -> bool:
    """Whether the broker may have some of what is cut off; ``kept`` as in SessionLog.release_forgets."""
    if cut.partition not in kept:
        return True
    incarnation, first = kept[cut.partition]
    return incarnation == cut.incarnation and (cut.end is None or cut.end > first)


def encode_forgotten(forgotten: Forgotten) -> bytes:
    """JSON."""
    return msgspec.json.encode(forgotten)


def decode_forgotten(content: bytes) -> Forgotten:
    """Raises msgspec.DecodeError."""
    return msgspec.json.decode(content, type=Forgotten)
