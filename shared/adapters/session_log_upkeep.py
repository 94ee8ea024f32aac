"""Looking after the session log's files: forgotten users out, small files into larger ones, old ones away."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta

import polars as pl

from shared.adapters.session_log_frames import Wishes, concerns, empty_frame, encode_frame
from shared.adapters.session_log_store import ATTEMPTS, FileChanged, Listing, LogStore
from shared.core.errors import Unavailable
from shared.core.log_files import LogFile, Part, by_life, covered_by_others, end_of, to_expire, to_merge, uncovered
from shared.core.session_log_port import Upkeep, can_be_read

log = logging.getLogger(__name__)

_MERGE_S = 5.0
"""No merge is begun in one upkeep after so long, seconds: whoever calls has other work too."""


def day_of(ms: int) -> str:
    """YYYY-MM-DD, UTC."""
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d")


class LogKeeper:
    """Remembers which files were found free of which forgotten users, so that each is looked at once."""

    def __init__(self, store: LogStore, max_days: int, max_bytes: int) -> None:
        self._store = store
        self._max_days = max_days
        self._max_bytes = max_bytes
        self._clean: dict[str, frozenset[str]] = {}
        self._empty_bytes = len(encode_frame(empty_frame()))

    def written(self, file: LogFile, wishes: frozenset[str]) -> None:
        """A file was written without the events that these wishes cut off."""
        self._clean[file.path] = wishes

    def apply_forgets(self, beat: Callable[[], None]) -> int:
        """See SessionLog. What was done before an error stays done."""
        removed = 0
        for _ in range(ATTEMPTS):
            changed = False
            listing = self._store.list()
            wishes = self._store.wishes(listing.forgets)
            paths, everything = frozenset(wishes), Wishes(wishes.values())
            present = {file.path for file in listing.files}
            self._clean = {path: known for path, known in self._clean.items() if path in present}
            for file in listing.files:
                beat()
                new = paths - self._clean.get(file.path, frozenset())
                try:
                    if any(concerns(wishes[path], file) for path in new):
                        removed += self._without(file, everything, paths)
                    self._clean[file.path] = paths
                except FileChanged:
                    changed = True
            if not changed:
                return removed
        raise Unavailable(f"session log {self._store.uri}: its files kept changing while users were forgotten")

    def _without(self, file: LogFile, wishes: Wishes, paths: frozenset[str]) -> int:
        keep = wishes.keep(file.life)
        if keep is None:
            return 0
        going = self._store.skim(file, ["user_id", "offset"]).filter(~keep).height
        if going:
            kept = self._store.read(file).filter(keep)
            self.written(self._store.write(file.day, file.life, file.first, file.next, kept), paths)
            self._store.remove(file)
        return going

    def release_forgets(self, listing: Listing, kept: Mapping[int, tuple[int, int]], before_ms: int) -> int:
        """See SessionLog."""
        released = 0
        for path, wish in self._store.wishes(listing.forgets).items():
            again = any(can_be_read(cut, kept) for cut in wish.cuts)
            dirty = any(concerns(wish, f) and path not in self._clean.get(f.path, ()) for f in listing.files)
            if wish.requested_at < before_ms and not again and not dirty:
                self._store.remove_wish(path)
                released += 1
        return released

    def upkeep(self, now_ms: int, beat: Callable[[], None]) -> Upkeep:
        """See SessionLog."""
        self._drop_mended(self._store.list())
        expired = self._expire(self._store.list(), now_ms)
        compacted = 0
        try:
            listing = self._store.list()
            wishes = self._store.wishes(listing.forgets)
            began = time.monotonic()
            for run in to_merge(listing.files, day_of(now_ms)):
                if time.monotonic() - began > _MERGE_S:
                    break
                beat()
                self._merge(run, Wishes(wishes.values()), frozenset(wishes))
                compacted += len(run)
            for file in covered_by_others(self._store.list().files):
                self._store.remove(file)
        except FileChanged:
            log.info("session log: files changed while they were merged; the rest waits for the next time")
        return Upkeep(compacted, expired)

    def _merge(self, run: list[Part], wishes: Wishes, paths: frozenset[str]) -> None:
        """One file in the place of several: it is there before they go."""
        first = run[0].file
        rows = pl.concat([self._store.read(part.file).filter(pl.col("offset") >= part.start) for part in run])
        if (keep := wishes.keep(first.life)) is not None:
            rows = rows.filter(keep)
        merged = self._store.write(first.day, first.life, run[0].start, run[-1].file.next, rows)
        self.written(merged, paths)
        for part in run:
            if part.file.path != merged.path:
                self._store.remove(part.file)

    def _drop_mended(self, listing: Listing) -> None:
        """Damaged files whose offsets were read again."""
        for damaged in listing.damaged:
            others = [file for file in listing.files if file.life == damaged.life]
            if not uncovered([(damaged.first, damaged.next)], others):
                log.info("session log: the offsets of %s were read again; it is removed", damaged.set_aside)
                self._store.remove_damaged(damaged)

    def _expire(self, listing: Listing, now_ms: int) -> int:
        oldest = day_of(now_ms - round(timedelta(days=self._max_days) / timedelta(milliseconds=1)))
        oldest = oldest if self._max_days else ""
        going = to_expire(listing.files, oldest, self._max_bytes, self._empty_bytes)
        ends = {life: end_of(files, life) for life, files in by_life(listing.files).items()}
        last = {file for file in going if file.next == ends[file.life]}
        for file in set(going) - last:
            self._store.remove(file)
        for file in last:  # it says how far was read; and a full disk has room for it by now
            self._store.write(file.day, file.life, file.first, file.next, empty_frame())
            self._store.remove(file)
        for file in listing.damaged:
            if file.day < oldest:
                log.warning("session log: %s was never read again and is now too old: removed", file.set_aside)
                self._store.remove_damaged(file)
        return len(going)
