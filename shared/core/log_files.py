"""The files of the session log: what a name says, which part of which file counts, and which files should go.

A name holds the day of logging, the partition, its incarnation (32 bits), the offsets covered (first, next) and the
checksum of the content, so that nothing is ever overwritten by anything else, and damage is seen.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from shared.core.progress import Progress

MERGED_EVENTS = 500_000
"""Offsets that a merged file covers, at most: so many events, with room for longer ids, are some 100 MB in memory."""
MERGED_BYTES = 32 << 20
"""Size of the files merged into one, at most."""
MERGED_FILES = 16
"""Small files of the present day wait until there are so many; those of a day that is over are merged at once."""
_GENERATIONS = 1000
"""How often a topic's offsets may begin anew within one life of it."""

_NAME = re.compile(r"dt=(\d{4}-\d\d-\d\d)/p(\d+)-([0-9a-f]{8})-(\d+)-(\d+)-([0-9a-f]{8})\.parquet")
_DAMAGED = re.compile(r"damaged/(.+)\.damaged")


class LogFile(NamedTuple):
    """One file. ``day``: YYYY-MM-DD; ``size``: bytes."""

    day: str
    partition: int
    incarnation: int
    first: int
    next: int
    checksum: int
    size: int

    @property
    def path(self) -> str:
        """Below the log's root."""
        name = f"p{self.partition}-{self.incarnation:08x}-{self.first}-{self.next}-{self.checksum:08x}.parquet"
        return f"dt={self.day}/{name}"

    @property
    def set_aside(self) -> str:
        """Where it goes if it is damaged."""
        return f"damaged/{self.path}.damaged"

    @property
    def life(self) -> tuple[int, int]:
        """(partition, incarnation)"""
        return self.partition, self.incarnation


class Part(NamedTuple):
    """What counts of a file: its events from offset ``start`` on."""

    file: LogFile
    start: int


def log_file(path: str, size: int) -> LogFile | None:
    """None for a file that is not of the log's events."""
    match = _NAME.fullmatch(path)
    if match is None:
        return None
    day, partition, incarnation, first, after, checksum = match.groups()
    if int(first) >= int(after):
        return None
    return LogFile(day, int(partition), int(incarnation, 16), int(first), int(after), int(checksum, 16), size)


def damaged_file(path: str, size: int) -> LogFile | None:
    """The file that was set aside here; None for any other path."""
    match = _DAMAGED.fullmatch(path)
    return log_file(match[1], size) if match else None


def by_life(files: Iterable[LogFile]) -> dict[tuple[int, int], list[LogFile]]:
    """(partition, incarnation) -> its files by first offset, the wider one first, in any order of ``files``."""
    lives: defaultdict[tuple[int, int], list[LogFile]] = defaultdict(list)
    for file in files:
        lives[file.life].append(file)
    for life in lives.values():
        life.sort(key=lambda file: (file.first, -file.next, file.path))
    return dict(sorted(lives.items()))


def parts(files: Iterable[LogFile]) -> list[Part]:
    """What counts of each file, so that every offset counts once. Files that others cover are left out.

    Overlaps come from writers that lost their partition without noticing, and from a crash between a merged file and
    the removal of those merged.
    """
    chosen: list[Part] = []
    for life in by_life(files).values():
        covered = 0
        for file in life:
            if file.next > covered:
                chosen.append(Part(file, max(file.first, covered)))
                covered = file.next
    return chosen


def covered_by_others(files: Sequence[LogFile]) -> list[LogFile]:
    """Files without which nothing would be missing."""
    counting = {part.file for part in parts(files)}
    return [file for file in files if file not in counting]


def end_of(files: Iterable[LogFile], life: tuple[int, int]) -> int | None:
    """The offset after the last one covered in a life of a partition; None: nothing is."""
    return max((file.next for file in files if file.life == life), default=None)


def uncovered(wanted: Iterable[tuple[int, int]], files: Iterable[LogFile]) -> list[tuple[int, int]]:
    """The parts of the ranges that no file covers, ascending and apart. All files are of one life."""
    spans = sorted((file.first, file.next) for file in files)
    holes: list[tuple[int, int]] = []
    for start, stop in sorted(wanted):
        at = max(start, holes[-1][1]) if holes else start
        for first, after in spans:
            if first >= stop:
                break
            if first > at:
                holes.append((at, first))
            at = max(at, after)
        if at < stop:
            holes.append((at, stop))
    return holes


def to_merge(files: Iterable[LogFile], today: str) -> list[list[Part]]:
    """Runs of parts that one file should take the place of: of one day, without a gap, small enough together."""
    runs: list[list[Part]] = []
    for part in parts(files):
        run = runs[-1] if runs else []
        if run and _fits(run, part):
            run.append(part)
        else:
            runs.append([part])
    return [run for run in runs if len(run) >= (MERGED_FILES if run[0].file.day >= today else 2)]


def _fits(run: Sequence[Part], part: Part) -> bool:
    first, last, file = run[0].file, run[-1].file, part.file
    return (
        (file.day, file.life) == (first.day, first.life)
        and part.start == last.next
        and file.next - run[0].start <= MERGED_EVENTS
        and sum(other.file.size for other in run) + file.size <= MERGED_BYTES
    )


def to_expire(files: Sequence[LogFile], oldest_day: str, max_bytes: int, empty_bytes: int) -> list[LogFile]:
    """Files of days before ``oldest_day``, and the oldest ones beyond ``max_bytes`` (0: no limit).

    A file of ``empty_bytes`` holds no events. If it is a partition's last it stays, for it says how far was read.
    """
    lives = by_life(files)
    last = {life: max(file.next for file in of_life) for life, of_life in lives.items()}
    going = [file for file in files if file.size > empty_bytes or file.next < last[file.life]]
    old = [file for file in going if file.day < oldest_day]
    total = sum(file.size for file in files) - sum(file.size for file in old)
    if max_bytes:
        for file in _oldest_first([file for file in going if file.day >= oldest_day]):
            if total <= max_bytes:
                break
            old.append(file)
            total -= file.size
    return old


def _oldest_first(files: Sequence[LogFile]) -> list[LogFile]:
    """By day; within a day, partitions take turns: by how far along its partition's offsets of that day a file is."""
    ends: dict[tuple[str, tuple[int, int]], tuple[int, int]] = {}
    for file in files:
        low, high = ends.get((file.day, file.life), (file.first, file.next))
        ends[file.day, file.life] = min(low, file.first), max(high, file.next)

    def age(file: LogFile) -> tuple[str, float, str]:
        low, high = ends[file.day, file.life]
        return file.day, (file.next - low) / (high - low), file.path

    return sorted(files, key=age)


def present_life(files: Sequence[LogFile], partition: int, life: str, end: int) -> int:
    """See SessionLog.incarnation."""
    known = {file.incarnation for file in files if file.partition == partition}
    names = [Progress(life, generation, 0, 0, []).incarnation_id() for generation in range(_GENERATIONS)]
    generation = max((number for number, name in enumerate(names[:-1]) if name in known), default=0)
    reached = end_of(files, (partition, names[generation]))
    return names[generation + 1 if reached is not None and reached > end else generation]


def to_read(files: Sequence[LogFile], damaged: Sequence[LogFile], first: int, end: int) -> list[tuple[int, int | None]]:
    """See SessionLog.missing. All files are of one life."""
    lost = [(max(file.first, first), min(file.next, end)) for file in damaged]
    holes = uncovered([(start, stop) for start, stop in lost if start < stop], files)
    reached = max((file.next for file in (*files, *damaged)), default=first)
    if holes and holes[-1][1] >= reached:
        reached = holes.pop()[0]
    return [*holes, (max(reached, first), None)]
