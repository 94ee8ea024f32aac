"""The session log in memory: the twin of session_log.py, for tests and for runs that need no disk."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import polars as pl

from shared.core.errors import Unavailable
from shared.core.events import Interaction
from shared.core.progress import Progress
from shared.core.session_log_port import WINDOW_COLUMNS, Forgotten, LogBatch, LogSummary, Upkeep, can_be_read, idle

Life = tuple[int, int]


class MemorySessionLog:
    """SessionLog (shared/core/session_log_port.py) in dicts. ``available = False`` makes every call fail."""

    def __init__(self) -> None:
        self.uri = "memory"
        self.available = True
        self._events: dict[Life, dict[int, Interaction]] = {}
        self._ends: dict[Life, int] = {}
        self._forgotten: list[Forgotten] = []
        self._lock = threading.Lock()

    def _check(self) -> None:
        if not self.available:
            raise Unavailable("the session log in memory was switched off")

    def incarnation(self, partition: int, life: str, end: int) -> int:
        """See SessionLog."""
        self._check()
        names = [Progress(life, generation, 0, 0, []).incarnation_id() for generation in range(100)]
        known = [number for number, name in enumerate(names) if (partition, name) in self._ends]
        generation = max(known, default=0)
        return names[generation + (self._ends.get((partition, names[generation]), 0) > end)]

    def missing(self, partition: int, incarnation: int, first: int, end: int) -> list[tuple[int, int | None]]:
        """See SessionLog."""
        self._check()
        return [(max(self._ends.get((partition, incarnation), first), first), None)]

    def append(self, batch: LogBatch) -> None:
        """See SessionLog."""
        self._check()
        life = (batch.partition, batch.incarnation)
        with self._lock:
            self._events.setdefault(life, {}).update(zip(batch.offsets, batch.events, strict=True))
            self._ends[life] = max(batch.next, self._ends.get(life, 0))
            self._remove_forgotten()

    def forget(self, forgotten: Forgotten) -> None:
        """See SessionLog."""
        self._check()
        with self._lock:
            known = {(wish.user_id, wish.requested_at) for wish in self._forgotten}
            if (forgotten.user_id, forgotten.requested_at) not in known:
                self._forgotten.append(forgotten)

    def known_lives(self) -> set[Life]:
        """See SessionLog."""
        self._check()
        return set(self._ends)

    def _remove_forgotten(self) -> int:
        removed = 0
        for wish in self._forgotten:
            for cut in wish.cuts:
                events = self._events.get((cut.partition, cut.incarnation), {})
                below = [at for at, event in events.items() if event.user_id == wish.user_id]
                for offset in below:
                    if cut.end is None or offset < cut.end:
                        del events[offset]
                        removed += 1
        return removed

    def apply_forgets(self, beat: Callable[[], None] = idle) -> int:
        """See SessionLog."""
        self._check()
        with self._lock:
            return self._remove_forgotten()

    def release_forgets(self, kept: Mapping[int, tuple[int, int]], before_ms: int) -> int:
        """See SessionLog."""
        self._check()

        def needed(wish: Forgotten) -> bool:
            return wish.requested_at >= before_ms or any(can_be_read(cut, kept) for cut in wish.cuts)

        with self._lock:
            self._remove_forgotten()
            before = len(self._forgotten)
            self._forgotten = [wish for wish in self._forgotten if needed(wish)]
            return before - len(self._forgotten)

    def upkeep(self, now_ms: int, beat: Callable[[], None] = idle) -> Upkeep:
        """See SessionLog. There is nothing to do."""
        self._check()
        return Upkeep()

    def summary(self) -> LogSummary:
        """See SessionLog."""
        self._check()
        return LogSummary(len(self._ends), 0, 0, None, None)

    def window(self, newest_events: int | None = None, since_ms: int | None = None) -> pl.DataFrame:
        """See SessionLog."""
        self._check()
        with self._lock:
            self._remove_forgotten()
            rows = [
                (event.ts, partition, offset, event)
                for (partition, _), events in sorted(self._events.items())
                for offset, event in sorted(events.items())
                if since_ms is None or event.ts >= since_ms
            ]
        rows.sort(key=lambda row: row[:3])
        if newest_events is not None:
            rows = rows[max(0, len(rows) - newest_events) :]
        seen: set[tuple[str, str]] = set()
        kept: list[Interaction] = []
        for *_, event in rows:
            if event.event_id is not None and (event.user_id, event.event_id) in seen:
                continue
            seen.add((event.user_id, event.event_id or ""))
            kept.append(event)
        schema = {name: pl.Int64() if name == "ts" else pl.String() for name in WINDOW_COLUMNS}
        return pl.DataFrame({name: [getattr(event, name) for event in kept] for name in WINDOW_COLUMNS}, schema=schema)
