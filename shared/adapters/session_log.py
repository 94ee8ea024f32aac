"""The session log in Parquet files, in a directory or an object store.

    dt=2026-11-22/p{partition}-{incarnation}-{first}-{next}-{checksum}.parquet    events, by day of logging (UTC)
    forgets/{time}-{user}.json                                                    wishes to be forgotten
    damaged/dt=.../p...parquet.damaged                                            what could not be read

A file is never changed: another takes its place, and readers take each offset from one file only. So every step of a
merge, a rewrite or a removal may be the last one before a crash.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import polars as pl

from shared.adapters.session_log_files import LogStorage, open_log_storage
from shared.adapters.session_log_frames import Wishes, frame_of
from shared.adapters.session_log_store import LogStore
from shared.adapters.session_log_upkeep import LogKeeper, day_of
from shared.adapters.session_log_window import read_window
from shared.core.log_files import end_of, present_life, to_read
from shared.core.session_log_port import Forgotten, LogBatch, LogSummary, Upkeep, idle

log = logging.getLogger(__name__)


class FileSessionLog:
    """The SessionLog port. ``upkeep`` keeps to ``max_days`` and ``max_bytes`` (0: no limit)."""

    def __init__(self, uri: str, max_days: int = 0, max_bytes: int = 0, storage: LogStorage | None = None) -> None:
        """Raises SettingsInvalid for a URL of an unknown kind."""
        self.uri = uri
        self._store = LogStore(uri, storage or open_log_storage(uri))
        self._keeper = LogKeeper(self._store, max_days, max_bytes)

    def incarnation(self, partition: int, life: str, end: int) -> int:
        """See SessionLog."""
        listing = self._store.list()
        return present_life([*listing.files, *listing.damaged], partition, life, end)

    def missing(self, partition: int, incarnation: int, first: int, end: int) -> list[tuple[int, int | None]]:
        """See SessionLog."""
        listing = self._store.list()
        life = (partition, incarnation)
        files = [file for file in listing.files if file.life == life]
        damaged = [file for file in listing.damaged if file.life == life]
        reached = end_of([*files, *damaged], life)
        if reached is not None and reached < first:
            place = {"partition": partition, "offset": reached, "lost": first - reached}
            log.error("session log: events were deleted by retention before they were read", extra=place)
        return to_read(files, damaged, first, end)

    def append(self, batch: LogBatch) -> None:
        """See SessionLog."""
        wishes = self._store.wishes(self._store.wish_paths())
        frame = frame_of(batch, Wishes(wishes.values()))
        life = (batch.partition, batch.incarnation)
        file = self._store.write(day_of(batch.logged_ms), life, batch.first, batch.next, frame)
        self._keeper.written(file, frozenset(wishes))

    def forget(self, forgotten: Forgotten) -> None:
        """See SessionLog."""
        self._store.add_wish(forgotten)

    def known_lives(self) -> set[tuple[int, int]]:
        """See SessionLog."""
        listing = self._store.list()
        return {file.life for file in (*listing.files, *listing.damaged)}

    def apply_forgets(self, beat: Callable[[], None] = idle) -> int:
        """See SessionLog."""
        return self._keeper.apply_forgets(beat)

    def release_forgets(self, kept: Mapping[int, tuple[int, int]], before_ms: int) -> int:
        """See SessionLog."""
        return self._keeper.release_forgets(self._store.list(), kept, before_ms)

    def upkeep(self, now_ms: int, beat: Callable[[], None] = idle) -> Upkeep:
        """See SessionLog."""
        return self._keeper.upkeep(now_ms, beat)

    def summary(self) -> LogSummary:
        """See SessionLog."""
        listing = self._store.list()
        days = sorted({file.day for file in listing.files})
        return LogSummary(
            len(listing.files),
            sum(file.size for file in listing.files),
            len(listing.damaged),
            days[0] if days else None,
            days[-1] if days else None,
        )

    def window(self, newest_events: int | None = None, since_ms: int | None = None) -> pl.DataFrame:
        """See SessionLog."""
        return self._store.attempt(lambda listing: read_window(self._store, listing, newest_events, since_ms))
