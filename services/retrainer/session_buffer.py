"""What was read of one partition and is not in the session log yet."""

from __future__ import annotations

import time
from collections.abc import Sequence

from shared.core.errors import InvalidEvent
from shared.core.events import EventRules, Interaction, decode
from shared.core.ports import Record
from shared.core.session_log_port import LogBatch


class SessionBuffer:
    """Collects the records of the ranges that the log misses, one range after the other."""

    def __init__(self, partition: int, incarnation: int, missing: Sequence[tuple[int, int | None]]) -> None:
        self._partition = partition
        self._incarnation = incarnation
        self._missing = list(missing)
        self._begin(missing[0][0])

    def _begin(self, offset: int) -> None:
        self._first = self.next = offset
        self._events: list[Interaction] = []
        self._offsets: list[int] = []
        self._since = 0.0

    def __len__(self) -> int:
        """Offsets read and not in the log yet."""
        return self.next - self._first

    @property
    def age_s(self) -> float:
        """Since the first of them was read; 0 where there are none."""
        return time.monotonic() - self._since if len(self) else 0.0

    @property
    def range_done(self) -> bool:
        """Whether the range in hand was read to its end; see ``next_range``."""
        end = self._missing[0][1]
        return end is not None and self.next >= end

    def add(self, records: Sequence[Record], rules: EventRules, now_ms: int) -> tuple[int, int]:
        """Take records up to the end of the range. Returns how many were (accepted, invalid).

        An invalid one is left out: the consumer keeps it in the dead-letter topic.
        """
        accepted, seen, end = len(self._events), 0, self._missing[0][1]
        for record in records:
            if record.offset < self.next:
                continue
            if end is not None and record.offset >= end:
                self.next = end
                break
            if not len(self):
                self._since = time.monotonic()
            seen += 1
            self.next = record.offset + 1
            try:
                event = decode(record.value, now_ms, rules)
            except InvalidEvent:
                continue
            self._events.append(event)
            self._offsets.append(record.offset)
        accepted = len(self._events) - accepted
        return accepted, seen - accepted

    def batch(self, now_ms: int) -> LogBatch:
        """All of it, for the log."""
        return LogBatch(
            self._partition,
            self._incarnation,
            self._first,
            self.next,
            self._events,
            self._offsets,
            now_ms,
        )

    def clear(self) -> None:
        """It is in the log."""
        self._begin(self.next)

    def next_range(self) -> int:
        """Go over to the next range, when this one is done and in the log. Returns the offset to read on from."""
        del self._missing[0]
        self._begin(self._missing[0][0])
        return self.next
