"""Names, ranges and choices of the session log's files."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from shared.core.log_files import (
    MERGED_EVENTS,
    LogFile,
    covered_by_others,
    damaged_file,
    log_file,
    parts,
    to_expire,
    to_merge,
    to_read,
    uncovered,
)


def file(
    first: int, after: int, day: str = "2026-11-22", partition: int = 0, life: int = 1, size: int = 100
) -> LogFile:
    return LogFile(day, partition, life, first, after, 0, size)


ranges = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 12)).map(lambda r: (r[0], r[0] + r[1])), max_size=12)


@given(ranges)
def test_each_offset_comes_from_one_file(spans):
    files = [file(first, after) for first, after in spans]
    read = [offset for part in parts(files) for offset in range(part.start, part.file.next)]
    assert len(read) == len(set(read))
    assert set(read) == {offset for span in spans for offset in range(*span)}


@given(ranges, st.randoms())
def test_what_others_cover_can_go(spans, order):
    files = [file(first, after) for first, after in spans]
    going = covered_by_others(files)
    left = list(dict.fromkeys(f for f in files if f not in going))
    assert {o for f in left for o in range(f.first, f.next)} == {o for span in spans for o in range(*span)}
    assert covered_by_others(left) == []
    order.shuffle(files)
    assert parts(files) == parts([*left])


@given(ranges, ranges)
def test_the_holes_are_what_is_wanted_and_not_covered(wanted, spans):
    holes = uncovered(wanted, [file(first, after) for first, after in spans])
    found = [offset for hole in holes for offset in range(*hole)]
    expected = {o for span in wanted for o in range(*span)} - {o for span in spans for o in range(*span)}
    assert found == sorted(expected)
    assert all(start < stop for start, stop in holes)


@given(ranges, ranges, st.integers(0, 20), st.integers(0, 20))
def test_what_to_read_is_what_no_file_has_and_the_broker_does(spans, damaged, first, more):
    files, broken = ([file(*span) for span in group] for group in (spans, damaged))
    reached = max([0, *(span[1] for span in (*spans, *damaged))])
    end = max(first, reached) + more
    todo = to_read(files, broken, first, end)
    assert todo[-1][1] is None
    assert [start for start, _ in todo] == sorted(start for start, _ in todo)
    read = [o for start, stop in todo for o in range(start, end if stop is None else stop)]
    assert len(read) == len(set(read))
    covered = {o for span in spans for o in range(*span)}
    assert not covered & set(read), "nothing is read twice"
    lost = {o for span in damaged for o in range(*span)} - covered
    assert {o for o in lost if o >= first} <= set(read), "all that was lost is read again"
    if spans or damaged:
        assert set(read) <= lost | set(range(reached, end))
    else:
        assert todo == [(first, None)]


def test_a_name_says_all_of_it():
    one = LogFile("2026-11-22", 3, 0xBEEF, 0, 12, 0xA, 77)
    assert one.path == "dt=2026-11-22/p3-0000beef-0-12-0000000a.parquet"
    assert log_file(one.path, 77) == one
    assert damaged_file(one.set_aside, 77) == one
    assert log_file(one.set_aside, 77) is None
    for other in ("x.parquet", "dt=2026-11-22/x.parquet", f"a/{one.path}", f"{one.path}.tmp", "damaged/x.damaged"):
        assert log_file(other, 1) is None
        assert damaged_file(other, 1) is None
    assert log_file("dt=2026-11-22/p3-0000beef-12-12-0000000a.parquet", 1) is None, "covers nothing"


def test_only_neighbours_of_one_day_and_life_are_merged():
    files = [
        file(0, 5), file(5, 9), file(9, 12, day="2026-11-23"), file(12, 15, day="2026-11-23"), file(20, 25),
        file(0, 5, life=2), file(5, 9, partition=1), file(26, 30), file(30, 35),
    ]  # fmt: skip
    runs = to_merge(files, "2026-11-24")
    assert [[(p.start, p.file.next) for p in run] for run in runs] == [
        [(0, 5), (5, 9)],
        [(9, 12), (12, 15)],
        [(26, 30), (30, 35)],
    ]
    assert to_merge(files, "2026-11-22") == []


def test_merged_files_stay_small_enough():
    third = MERGED_EVENTS // 3
    files = [file(n * third, (n + 1) * third) for n in range(7)]
    assert [len(run) for run in to_merge(files, "2026-11-24")] == [3, 3]
    heavy = [file(n, n + 1, size=20 << 20) for n in range(4)]
    assert to_merge(heavy, "2026-11-24") == []


def test_the_oldest_go_first_and_partitions_take_turns():
    fast = [file(n * 100, (n + 1) * 100, size=10) for n in range(10)]
    slow = [file(n, n + 1, partition=1, size=10) for n in range(10)]
    old = [file(0, 5, day="2026-11-01", partition=2, size=10)]
    files = [*fast, *slow, *old]
    random.Random(1).shuffle(files)
    going = to_expire(files, "", 100, 1)
    assert going[0] == old[0]
    assert {f.first for f in going if f.partition == 0} == {0, 100, 200, 300, 400}
    assert {f.first for f in going if f.partition == 1} == {0, 1, 2, 3, 4}
    assert to_expire(files, "2026-11-02", 0, 1) == old
    assert to_expire(files, "", 0, 1) == []
