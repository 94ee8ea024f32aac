"""The engagement topic, read into the drift monitor."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from services.retrainer.memory import Due, Memory
from services.retrainer.metrics import RetrainerMetrics
from shared.core.drift import Alarm
from shared.core.engagement import decode_engagement
from shared.core.ports import Record

log = logging.getLogger(__name__)

_MAX_RECORDS = 500


class EngagementReader(Protocol):
    """The engagement topic, read in a group of its own. Raises TopicMissing, Unavailable."""

    def poll(self, timeout_s: float, max_records: int) -> list[Record]:
        """The next records, in offset order within each partition."""

    def commit(self, records: Sequence[Record]) -> None:
        """Never again these, nor those before them."""

    def close(self) -> None:
        """Leave the group."""


class DriftWatch:
    """Owns the reader: what it read is in the memory at once, and committed by ``commit`` when the memory is stored."""

    def __init__(self, reader: EngagementReader, metrics: RetrainerMetrics, now_ms: Callable[[], int]) -> None:
        self._reader, self._metrics, self._now_ms = reader, metrics, now_ms
        self._read: list[Record] = []

    def poll(self, memory: Memory, timeout_s: float) -> bool:
        """Read on; whether something came. An alarm makes a training due."""
        records = self._reader.poll(timeout_s, _MAX_RECORDS)
        for record in records:
            self._take(memory, record)
        self._read += records
        return bool(records)

    def commit(self) -> None:
        """What was read need not be read again: the memory that knows of it is stored."""
        if self._read:
            self._reader.commit(self._read)
            self._read = []

    def close(self) -> None:
        """Leave the group; what was not committed is read again, and found to be known."""
        self._reader.close()

    def _take(self, memory: Memory, record: Record) -> None:
        try:
            batch = decode_engagement(record.value or b"")
        except msgspec.DecodeError as error:
            self._metrics.unreadable.inc()
            place = {"partition": record.partition, "offset": record.offset}
            log.warning("a value of the engagement topic cannot be read: %s", error, extra=place)
            return
        new, alarm = memory.monitor.take(batch, self._now_ms())
        if new is not None:
            self._metrics.engaged(new)
        if alarm is not None:
            self._alarmed(memory, alarm)

    def _alarmed(self, memory: Memory, alarm: Alarm) -> None:
        self._metrics.alarms.labels("repeated" if alarm.repeat else "new").inc()
        log.warning(
            "engagement fell: %.1f%% of next actions were in the ranking, %.1f%% are",
            100 * alarm.before,
            100 * alarm.after,
            extra={"model_version": alarm.version, "events": alarm.events, "repeat": alarm.repeat},
        )
        memory.due = Due("drift", alarm.at, alarm)
