"""One model version's hits and misses in order, and where its present level began: found by ADWIN.

A. Bifet, R. Gavalda: Learning from time-changing data with adaptive windowing. SDM 2007; river's implementation.

The detector itself is never stored. At any time it is what a new one becomes that is fed the bits of the present
window, so a track that was stored and read again goes on exactly as if it had never stopped.
"""

from __future__ import annotations

import msgspec
from river.drift import ADWIN

from shared.core.rollback import Level

KEEP = 65_536
"""Bits kept at least, once there were so many; at most twice as many, 16 KB stored. Older ones leave the window."""
CHECK_EVERY = 32
"""Events between two looks of the detector."""
MARK_EVERY = 64
"""Events between two notes of the time: the answer to `since when` is that coarse."""


class StoredTrack(msgspec.Struct, array_like=True):
    """A track as it is stored. total: bits ever; start: absolute number of the window's first bit."""

    total: int
    start: int
    length: int
    bits: bytes
    marks: list[tuple[int, int]]
    """(absolute number of a bit, about when it came: ms since the epoch)"""


class Track:
    """Fed with ``add``, in order; ``delta`` is ADWIN's: the smaller, the surer and the later."""

    def __init__(self, delta: float, stored: StoredTrack | None = None) -> None:
        self._delta = delta
        self._bits = bytearray() if stored is None else _unpacked(stored.bits, stored.length)
        self.total = 0 if stored is None else stored.total
        self.start = 0 if stored is None else stored.start
        self._marks = [] if stored is None else list(stored.marks)
        self._adwin = self._new_detector()
        self._feed_window()

    def stored(self) -> StoredTrack:
        """What ``Track(delta, stored)`` goes on from."""
        packed = _packed(self._bits)
        return StoredTrack(self.total, self.start, len(self._bits), packed, list(self._marks))

    def add(self, hit: bool, ts: int) -> tuple[Level, Level] | None:
        """One more outcome, of about the time ts. Returns (before, after) where a new level began.

        The window is the new level from then on.
        """
        if self.total % MARK_EVERY == 0:
            self._marks.append((self.total, ts))
        self._bits.append(hit)
        self.total += 1
        self._adwin.update(int(hit))
        cut = None
        if self._adwin.drift_detected:
            old = self.start
            self._begin_window(self._change(old, self.total))
            cut = self._level(old, self.start), self.window()
        if len(self._bits) >= 2 * KEEP:
            self._forget_oldest()
        return cut

    def window(self) -> Level:
        """The present level: since the last change, or since the beginning."""
        return self._level(self.start, self.total)

    def recent(self, events: int) -> Level:
        """The newest of the window, at most so many."""
        return self._level(max(self.start, self.total - events), self.total)

    def since(self, first: int) -> bytearray:
        """The bits from the absolute number ``first`` on, as far as they are kept."""
        return self._bits[max(0, first - self._oldest) :]

    def began_at(self) -> int:
        """When the window began: ms since the epoch, 0 for a track without events."""
        times = [ts for number, ts in self._marks if number <= self.start]
        return times[-1] if times else 0

    @property
    def _oldest(self) -> int:
        return self.total - len(self._bits)

    def _level(self, first: int, end: int) -> Level:
        part = self._bits[max(0, first - self._oldest) : end - self._oldest]
        return Level(part.count(1), len(part))

    def _new_detector(self) -> ADWIN:
        return ADWIN(delta=self._delta, clock=CHECK_EVERY)

    def _begin_window(self, start: int) -> None:
        """Feed a new detector; one that finds a further change in the shorter window shortens it again."""
        self.start = start
        self._adwin = self._new_detector()
        self._feed_window()

    def _feed_window(self) -> None:
        position = self.start
        while position < self.total:
            self._adwin.update(self._bits[position - self._oldest])
            position += 1
            if self._adwin.drift_detected:
                self.start = self._change(self.start, position)
                self._adwin, position = self._new_detector(), self.start

    def _change(self, first: int, end: int) -> int:
        """The number at which the level changed most surely, somewhere between the two.

        ADWIN only says that it did: of its window it drops no more than makes the rest look like one level, which
        leaves old bits in it. The place is where the likelihood of two levels is largest (cumulative sums).
        """
        bits = self._bits[first - self._oldest : end - self._oldest]
        events, mean = len(bits), bits.count(1) / len(bits)
        best, place, hits = -1.0, CHECK_EVERY, 0
        for at in range(CHECK_EVERY, events - CHECK_EVERY + 1, CHECK_EVERY):
            hits += bits.count(1, at - CHECK_EVERY, at)
            surety = (hits - at * mean) ** 2 / (at * (events - at))
            if surety > best:
                best, place = surety, at
        return first + min(place, events)

    def _forget_oldest(self) -> None:
        """At fixed numbers of bits, so that it does not matter when the process was last started."""
        del self._bits[:-KEEP]
        known = [mark for mark in self._marks if mark[0] < self._oldest]
        self._marks = known[-1:] + [mark for mark in self._marks if mark[0] >= self._oldest]
        if self.start < self._oldest:
            self._begin_window(self._oldest)


def _packed(bits: bytearray) -> bytes:
    """Eight bits a byte, the first bit highest; padded with zeros at the front."""
    return int(b"0" + bits.translate(_DIGITS), 2).to_bytes((len(bits) + 7) // 8, "big")


def _unpacked(packed: bytes, length: int) -> bytearray:
    digits = format(int.from_bytes(packed, "big"), f"0{length}b") if length else ""
    return bytearray(digits.encode().translate(_BITS))


_DIGITS = bytes(ord("1") if value else ord("0") for value in range(256))
_BITS = bytes(value == ord("1") for value in range(256))
