"""What every session log promises: in memory, in a directory, and in an object store (fsspec's own, in memory)."""

from __future__ import annotations

import errno
import logging
import os
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

import fsspec
import polars as pl
import pytest

from shared.adapters.interaction_logs import COLUMNS
from shared.adapters.memory_session_log import MemorySessionLog
from shared.adapters.session_log import FileSessionLog
from shared.core.errors import SettingsInvalid, Unavailable
from shared.core.events import Interaction
from shared.core.progress import Progress
from shared.core.session_log_port import Cut, Forgotten, LogBatch, SessionLog

NOW_MS = 1_700_000_000_000
DAY_MS = 86_400_000
LIFE = 0xBEEF


def event(n: int, user: str = "u", event_type: str = "view", **ids: str) -> Interaction:
    return Interaction(user, f"i{n}", event_type, NOW_MS + n, **ids)


def batch(
    first: int, after: int, users: str = "u", partition: int = 0, incarnation: int = LIFE, at: int = NOW_MS
) -> LogBatch:
    """Events first, first + 1, ... of these users (letters) in turn; the items of partition p begin at 1000 p."""
    events = [event(n + 1000 * partition, users[n % len(users)]) for n in range(first, after)]
    return LogBatch(partition, incarnation, first, after, events, range(first, after), at)


def items(log: SessionLog, *how: int | None) -> list[int]:
    return [int(item[1:]) for item in log.window(*how)["item_id"]]


@pytest.fixture(params=["memory", "directory", "object-store"])
def session_log(request: pytest.FixtureRequest, tmp_path: Path) -> SessionLog:
    if request.param == "memory":
        return MemorySessionLog()
    return FileSessionLog(str(tmp_path / "log") if request.param == "directory" else f"memory://{uuid.uuid4()}")


@pytest.fixture(params=["directory", "object-store"])
def make_log(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., FileSessionLog]:
    """Opens the one log of this test."""
    uri = str(tmp_path / "log") if request.param == "directory" else f"memory://{uuid.uuid4()}"
    return lambda **limits: FileSessionLog(uri, **limits)


def files(log: FileSessionLog) -> dict[str, bytes]:
    """Path below the root -> content of every file."""
    filesystem, root = fsspec.core.url_to_fs(log.uri)
    return {path[len(root) :].lstrip("/"): filesystem.cat_file(path) for path in sorted(filesystem.find(root))}


def change(log: FileSessionLog, path: str, content: bytes) -> None:
    filesystem, root = fsspec.core.url_to_fs(log.uri)
    filesystem.pipe_file(f"{root}/{path}", content)


def test_an_empty_log(session_log):
    window = session_log.window()
    assert tuple(window.columns) == COLUMNS
    assert window.schema["ts"] == pl.Int64
    assert window.height == 0
    assert session_log.missing(0, LIFE, 5, 9) == [(5, None)]
    assert session_log.known_lives() == set()
    assert session_log.summary().files == 0
    assert session_log.apply_forgets() == 0
    session_log.upkeep(NOW_MS)


def test_what_was_appended_is_there_with_all_its_kinds(session_log):
    kinds = ["view", "impression", "dismiss", "purchase"]
    events = [event(n, "ü/1", kind, session_id="s", recommendation_id="r") for n, kind in enumerate(kinds)]
    session_log.append(LogBatch(3, LIFE, 0, 6, events, [0, 1, 3, 4], NOW_MS))
    rows = session_log.window().to_dicts()
    assert [row["event_type"] for row in rows] == kinds
    assert rows[2] == {
        "session_id": "s", "user_id": "ü/1", "item_id": "i2", "ts": NOW_MS + 2, "event_type": "dismiss"
    }  # fmt: skip
    assert session_log.missing(3, LIFE, 0, 9) == [(6, None)]
    assert session_log.known_lives() == {(3, LIFE)}


def test_a_batch_without_events_still_says_how_far_was_read(session_log):
    session_log.append(LogBatch(0, LIFE, 0, 7, [], [], NOW_MS))
    assert session_log.missing(0, LIFE, 0, 9) == [(7, None)]
    assert items(session_log) == []


def test_overlaps_and_repetitions_count_once(session_log):
    for first, after in [(0, 4), (0, 4), (2, 6), (1, 3), (6, 7), (5, 9), (0, 2)]:
        session_log.append(batch(first, after))
    assert items(session_log) == list(range(9))
    assert session_log.missing(0, LIFE, 0, 9) == [(9, None)]


def test_partitions_and_incarnations_are_apart(session_log):
    session_log.append(batch(0, 2))
    session_log.append(batch(0, 2, partition=1))
    session_log.append(LogBatch(0, 7, 0, 1, [event(500)], [0], NOW_MS))
    assert items(session_log) == [0, 1, 500, 1000, 1001]
    assert session_log.missing(0, 7, 0, 9) == [(1, None)]
    assert session_log.missing(1, LIFE, 0, 9) == [(2, None)]


def test_reading_goes_on_where_kafka_still_has_events(session_log):
    session_log.append(batch(0, 3))
    assert session_log.missing(0, LIFE, 8, 20) == [(8, None)]


def test_offsets_that_began_anew_make_another_incarnation(session_log):
    def name(generation: int) -> int:
        return Progress("life", generation, 0, 0, []).incarnation_id()

    assert session_log.incarnation(0, "life", 0) == name(0)
    session_log.append(batch(0, 5, incarnation=name(0)))
    assert session_log.incarnation(0, "life", 5) == name(0)
    assert session_log.incarnation(0, "life", 4) == name(1)
    session_log.append(batch(0, 2, incarnation=name(1)))
    assert session_log.incarnation(0, "life", 9) == name(1)
    assert session_log.incarnation(1, "life", 0) == name(0)
    assert session_log.incarnation(0, "another life", 9) != name(1)


def test_the_window_is_limited_by_number_and_time(session_log):
    session_log.append(batch(0, 10))
    session_log.append(batch(0, 10, partition=1))  # items 1000 to 1009 are the newer ones
    assert items(session_log, 3) == [1007, 1008, 1009]
    assert items(session_log, 12) == [8, 9, *range(1000, 1010)]
    assert items(session_log, 100) == items(session_log)
    assert items(session_log, 0) == []
    assert items(session_log, None, NOW_MS + 1008) == [1008, 1009]
    assert items(session_log, 1, NOW_MS + 1008) == [1009]
    assert items(session_log, 5, NOW_MS + 5000) == []


def test_events_of_one_time_are_no_more_than_asked_for(session_log):
    for first in range(0, 40, 4):
        events = [Interaction("u", f"i{n}", "view", NOW_MS) for n in range(first, first + 4)]
        session_log.append(LogBatch(0, LIFE, first, first + 4, events, range(first, first + 4), NOW_MS))
    assert items(session_log, 5) == [35, 36, 37, 38, 39]


def test_an_event_that_was_sent_twice_counts_once(session_log):
    events = [event(1, event_id="e"), event(2, event_id="e"), event(3), event(4), event(5, "v", event_id="e")]
    session_log.append(LogBatch(0, LIFE, 0, 5, events, range(5), NOW_MS))
    assert items(session_log) == [1, 3, 4, 5]


def test_a_forgotten_user_is_gone_and_what_comes_later_stays(session_log):
    session_log.append(batch(0, 6, "ab"))
    session_log.append(batch(0, 4, "ab", incarnation=7))
    session_log.forget(Forgotten("a", NOW_MS, [Cut(0, LIFE, 8), Cut(0, 7, None)]))
    assert items(session_log) == [1, 1, 3, 3, 5]
    session_log.append(batch(6, 10, "ab"))  # offset 6 was published before the wish, 8 after it
    session_log.apply_forgets()
    assert items(session_log) == [1, 1, 3, 3, 5, 7, 8, 9]
    session_log.append(batch(0, 6, "ab"))  # an old owner, late
    assert items(session_log) == [1, 1, 3, 3, 5, 7, 8, 9]
    assert session_log.missing(0, LIFE, 0, 10) == [(10, None)]


def test_a_wish_is_kept_until_nothing_can_undo_it(session_log):
    session_log.append(batch(0, 6, "ab"))
    session_log.forget(Forgotten("a", NOW_MS, [Cut(0, LIFE, 6)]))
    session_log.apply_forgets()
    assert session_log.release_forgets({0: (LIFE, 3)}, NOW_MS + 1) == 0, "the broker has some"
    assert session_log.release_forgets({0: (LIFE, 6)}, NOW_MS) == 0, "it is too new"
    assert session_log.release_forgets({0: (LIFE, 6)}, NOW_MS + 1) == 1
    assert items(session_log) == [1, 3, 5]


def test_a_wish_told_twice_keeps_its_first_meaning(session_log):
    session_log.append(batch(0, 2))
    session_log.append(batch(0, 2, incarnation=7))
    session_log.forget(Forgotten("u", NOW_MS, [Cut(0, LIFE, 2)]))
    session_log.forget(Forgotten("u", NOW_MS, [Cut(0, LIFE, None), Cut(0, 7, 2)]))
    session_log.apply_forgets()
    assert items(session_log) == [0, 1]


def test_merging_changes_no_event_and_makes_one_file(make_log):
    log = make_log()
    for first in range(0, 40, 4):
        log.append(batch(first, first + 4))
    log.append(batch(10, 13))
    log.append(batch(40, 44, at=NOW_MS + DAY_MS))
    done = log.upkeep(NOW_MS + DAY_MS)
    assert (done.compacted, log.summary().files) == (11, 2)
    assert items(log) == list(range(44))
    assert log.upkeep(NOW_MS + DAY_MS).compacted == 0
    assert log.missing(0, LIFE, 0, 50) == [(44, None)]


def test_what_was_merged_goes_even_where_it_began_in_another_file(make_log):
    log = make_log()
    log.append(batch(0, 10))
    log.append(batch(5, 15, at=NOW_MS + DAY_MS))  # its second half counts
    log.append(batch(15, 20, at=NOW_MS + DAY_MS))
    log.upkeep(NOW_MS + 2 * DAY_MS)
    assert log.summary().files == 2
    assert items(log) == list(range(20))


def test_files_of_today_wait_until_they_are_many(make_log):
    log = make_log()
    for n in range(15):
        log.append(batch(n, n + 1))
    assert log.upkeep(NOW_MS).compacted == 0
    log.append(batch(15, 16))
    assert log.upkeep(NOW_MS).compacted == 16
    assert items(log) == list(range(16))


def test_forgetting_rewrites_only_what_it_must(make_log):
    log = make_log()
    log.append(batch(0, 4, "ab"))
    log.append(batch(4, 8, "b"))
    log.append(batch(0, 4, "b", partition=1))
    before = files(log)
    log.forget(Forgotten("a", NOW_MS, [Cut(0, LIFE, 9), Cut(1, LIFE, 9)]))
    beats: list[int] = []
    assert log.apply_forgets(lambda: beats.append(1)) == 2
    assert len(beats) == 3
    after = files(log)
    assert len(set(before) - set(after)) == 1
    assert not any(b'"a"' in content or b"\x01a" in content for path, content in after.items() if path[:3] == "dt=")
    assert log.apply_forgets() == 0
    assert make_log().apply_forgets() == 0


def test_old_events_go_and_reading_does_not_begin_again(make_log):
    log = make_log(max_days=2)
    log.append(batch(0, 4, at=NOW_MS))
    log.append(batch(0, 4, partition=1, at=NOW_MS))
    log.append(batch(4, 8, at=NOW_MS + 3 * DAY_MS))
    assert log.upkeep(NOW_MS + 3 * DAY_MS).expired == 2
    assert items(log) == [4, 5, 6, 7]
    assert log.missing(1, LIFE, 0, 9) == [(4, None)], "all of it expired, and still it was read"
    assert log.upkeep(NOW_MS + 3 * DAY_MS).expired == 0
    assert log.upkeep(NOW_MS + 9 * DAY_MS).expired == 1
    assert items(log) == []
    assert log.missing(0, LIFE, 0, 9) == [(8, None)]


def test_the_oldest_go_when_it_is_too_much(make_log):
    log = make_log()
    for first in range(0, 50, 10):
        for partition in (0, 1):
            log.append(batch(first, first + 10, partition=partition, at=NOW_MS + first * DAY_MS))
    limit = log.summary().bytes // 2
    small = make_log(max_bytes=limit)
    small.upkeep(NOW_MS + 50 * DAY_MS)
    assert small.summary().bytes <= limit
    left = items(small)
    assert left == [*range(30, 50), *range(1030, 1050)] or left == [*range(40, 50), *range(1030, 1050)]


@pytest.mark.parametrize("damage", ["cut short", "a bit flipped", "empty", "something else"])
def test_a_damaged_file_is_set_aside_and_read_again(make_log, damage, caplog):
    log = make_log()
    for first in (0, 4, 8):
        log.append(batch(first, first + 4))
    path = next(path for path in files(log) if "-4-8-" in path)
    content = files(log)[path]
    spoilt = {
        "cut short": content[:-9],
        "a bit flipped": content[:40] + bytes([content[40] ^ 4]) + content[41:],
        "empty": b"",
        "something else": b"PAR1 and so on PAR1",
    }
    change(log, path, spoilt[damage])
    with caplog.at_level(logging.ERROR):
        assert items(log) == [0, 1, 2, 3, 8, 9, 10, 11]
    assert path in caplog.text
    assert f"damaged/{path}.damaged" in files(log)
    assert log.summary().damaged == 1
    assert log.missing(0, LIFE, 0, 12) == [(4, 8), (12, None)]
    assert log.missing(0, LIFE, 6, 12) == [(6, 8), (12, None)]
    assert log.missing(0, LIFE, 9, 12) == [(12, None)], "the broker does not have it any more"
    log.append(batch(4, 8))
    assert items(log) == list(range(12))
    log.upkeep(NOW_MS)
    assert log.summary().damaged == 0
    assert log.missing(0, LIFE, 0, 12) == [(12, None)]


def test_the_last_file_damaged_is_where_reading_goes_on(make_log):
    log = make_log()
    log.append(batch(0, 4))
    log.append(batch(4, 8))
    change(log, next(path for path in files(log) if "-4-8-" in path), b"")
    assert items(log) == [0, 1, 2, 3]
    assert log.missing(0, LIFE, 0, 8) == [(4, None)]
    assert log.incarnation(0, "life", 0) == Progress("life", 0, 0, 0, []).incarnation_id()


def test_what_is_no_file_of_the_log_is_left_alone(make_log):
    log = make_log()
    log.append(batch(0, 2))
    for path in ("README", "dt=2023-11-14/notes.parquet", "dt=2023-11-14/p0-0000beef-5-5-00000000.parquet"):
        change(log, path, b"mine")
    assert items(log) == [0, 1]
    log.upkeep(NOW_MS + 9 * DAY_MS)
    assert "README" in files(log)


def test_reading_while_files_are_merged(make_log):
    log = make_log()
    stop, seen = threading.Event(), list[int]()

    def read() -> None:
        while not stop.is_set():
            seen.append(len(items(reader)))

    for n in range(30):
        log.append(batch(n, n + 1))
    reader = make_log()
    thread = threading.Thread(target=read)
    thread.start()
    for n in range(30, 60):
        log.append(batch(n, n + 1))
        log.upkeep(NOW_MS + DAY_MS)
    stop.set()
    thread.join()
    assert seen == sorted(seen), "no event disappears while files are merged"
    assert items(log) == list(range(60))


def test_nothing_is_seen_of_a_write_that_fails(tmp_path, monkeypatch):
    log = FileSessionLog(str(tmp_path / "log"))
    log.append(batch(0, 2))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Unavailable, match=r"session log .*No space left on device"):
        log.append(batch(2, 4))
    monkeypatch.undo()
    assert len(files(log)) == 1
    assert log.missing(0, LIFE, 0, 4) == [(2, None)]
    log.append(batch(2, 4))
    assert items(log) == [0, 1, 2, 3]


def test_drafts_of_the_dead_are_swept(tmp_path):
    log = FileSessionLog(str(tmp_path))
    log.append(batch(0, 2))
    folder = next(tmp_path.glob("dt=*"))
    for name, age_s in ((".unfinished-new", 0), (".unfinished-old", 100_000)):
        (folder / name).write_bytes(b"PAR1")
        os.utime(folder / name, (os.stat(folder / name).st_mtime - age_s,) * 2)
    assert log.summary().files == 1
    assert sorted(path.name for path in folder.glob(".unfinished-*")) == [".unfinished-new"]


def test_a_log_that_cannot_be_reached(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    log = FileSessionLog(str(tmp_path / "file"))
    with pytest.raises(Unavailable, match=r"session log .*file"):
        log.append(batch(0, 1))
    with pytest.raises(SettingsInvalid, match="SESSION_LOG_URI nowhere://log"):
        FileSessionLog("nowhere://log")


def test_the_files_are_as_documented(tmp_path):
    log = FileSessionLog(f"file://{tmp_path}")
    log.append(LogBatch(2, LIFE, 0, 9, [event(1, session_id="s", event_id="e", recommendation_id="r")], [5], NOW_MS))
    (path,) = tmp_path.rglob("*.parquet")
    assert path.relative_to(tmp_path).as_posix().startswith("dt=2023-11-14/p2-0000beef-0-9-")
    assert pl.read_parquet(path, hive_partitioning=False).to_dicts() == [
        {
            "user_id": "u", "item_id": "i1", "event_type": "view", "ts": NOW_MS + 1, "session_id": "s",
            "event_id": "e", "recommendation_id": "r", "partition": 2, "offset": 5,
        }
    ]  # fmt: skip
