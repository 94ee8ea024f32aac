from collections import Counter

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.model.dataset import (
    Sessions,
    build_sessions,
    catalogue_of,
    hold_out,
    in_company,
    split_newest,
    windows,
    without_new_items,
)


def log_of(*rows: tuple[str | None, str | None, str, int]) -> pl.DataFrame:
    schema = {"session_id": pl.String, "user_id": pl.String, "item_id": pl.String, "ts": pl.Int64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def sessions_of(*sessions: list[int]) -> Sessions:
    items = np.array([item for session in sessions for item in session], np.int32)
    starts = np.cumsum([0, *map(len, sessions)]).astype(np.int64)
    return Sessions(items, starts, np.arange(len(sessions), dtype=np.int64))


LOG = log_of(
    ("s1", "u1", "a", 1), ("s2", "u1", "b", 2), ("s1", "u1", "b", 3), (None, "u1", "c", 4), (None, "u1", "b", 5)
)


def test_catalogue_is_by_popularity_then_id() -> None:
    assert catalogue_of(LOG) == ["b", "a", "c"]
    assert catalogue_of(LOG, known=["z", "a"]) == ["z", "a", "b", "c"]


@pytest.mark.parametrize(
    ("sequence", "expected"),
    [
        ("auto", [[1, 0], [0], [2, 0]]),  # s1, s2, and the user's events without a session
        ("session", [[1, 0], [0]]),
        ("user", [[1, 0, 0, 2, 0]]),
    ],
)
def test_sequences(sequence: str, expected: list[list[int]]) -> None:
    sessions = build_sessions(LOG, ["b", "a", "c"], sequence)
    assert [s.tolist() for s in np.split(sessions.items, sessions.starts[1:-1])] == expected


def test_items_outside_the_catalogue_are_left_out() -> None:
    sessions = build_sessions(LOG, ["b"], "user")
    assert sessions.items.tolist() == [0, 0, 0]
    assert sessions.ended_at.tolist() == [5]


def test_a_session_and_a_user_of_the_same_name_stay_apart() -> None:
    assert len(build_sessions(log_of(("x", "u", "a", 1), (None, "x", "a", 2)), ["a"])) == 2


def test_no_events() -> None:
    sessions = build_sessions(log_of(), [])
    assert (len(sessions), sessions.pairs) == (0, 0)
    assert list(windows(sessions, 8, 4)) == []
    assert [len(part) for part in split_newest(sessions, 0.1)] == [0, 0]


def test_split_newest_goes_by_the_end_of_sessions() -> None:
    sessions = Sessions(np.arange(8, dtype=np.int32), np.array([0, 2, 4, 6, 8]), np.array([30, 10, 40, 20]))
    older, newest = split_newest(sessions, 0.5)
    assert older.items.tolist() == [2, 3, 6, 7]
    assert newest.items.tolist() == [0, 1, 4, 5]


def test_the_newest_sessions_and_their_windows() -> None:
    sessions = Sessions(np.arange(8, dtype=np.int32), np.array([0, 2, 4, 6, 8]), np.array([30, 10, 40, 20]))
    assert sessions.newest(0.5).tolist() == [0, 2]
    assert sessions.newest(0.6).tolist() == [0, 2, 3]
    assert sessions.newest(1.0).tolist() == [0, 1, 2, 3]
    (window,) = windows(sessions, 10, 10, chosen=sessions.newest(0.5))
    assert window.inputs[window.valid].tolist() == [0, 4]
    assert window.places[window.valid].tolist() == [0, 4]  # places in the whole log, as dismissals are told


def test_hold_out_numbers_the_older_part_first() -> None:
    split = hold_out(sessions_of([0, 2, 2], [2, 3], [0, 1]), ["a", "b", "c", "d"], 0.25)
    assert split.catalogue == ["c", "a", "d", "b"]
    assert split.known == 3
    assert split.older.items.tolist() == [1, 0, 0, 0, 2]
    assert split.newest.items.tolist() == [1, 3]
    assert without_new_items(split.newest, split.known).items.tolist() == [1]


def test_sessions_without_events_are_gone() -> None:
    kept = without_new_items(sessions_of([5, 6], [1, 6, 2]), 5)
    assert (kept.items.tolist(), kept.starts.tolist(), kept.ended_at.tolist()) == ([1, 2], [0, 2], [1])


def test_windows_of_one_batch() -> None:
    first, second = windows(sessions_of([1, 2, 3], [4], [5, 6, 7, 8, 9]), batch_events=100, truncate=3)
    assert first.fresh
    assert first.inputs.tolist() == [[5, 1], [6, 2], [7, 0]]
    assert first.targets.tolist() == [[6, 2], [7, 3], [8, 0]]
    assert first.valid.tolist() == [[True, True], [True, True], [True, False]]
    assert not second.fresh
    assert (second.inputs.tolist(), second.targets.tolist()) == ([[8]], [[9]])


@given(
    lengths=st.lists(st.integers(1, 30), max_size=40),
    batch_events=st.integers(1, 60),
    truncate=st.integers(1, 12),
    pool=st.integers(1, 4),
    seed=st.none() | st.integers(0, 5),
    longest=st.none() | st.integers(1, 12),
)
def test_windows_hold_every_pair_exactly_once_and_in_order(
    lengths: list[int], batch_events: int, truncate: int, pool: int, seed: int | None, longest: int | None
) -> None:
    item = iter(range(10_000))
    sessions = sessions_of(*([next(item) for _ in range(n)] for n in lengths))
    expected = Counter((int(a), int(a) + 1) for s in np.split(sessions.items, sessions.starts[1:-1]) for a in s[:-1])
    found: Counter[tuple[int, int]] = Counter()
    ends = np.zeros(0, np.int64)
    for window in windows(sessions, batch_events, truncate, pool, None if seed is None else [seed], longest=longest):
        steps, lanes = window.inputs.shape
        assert steps <= truncate
        columns = window.valid.sum(0)
        assert (np.diff(columns) <= 0).all()  # longest first
        assert (window.valid == (np.arange(steps)[:, None] < columns)).all()
        if not window.fresh:  # each lane goes on where it stopped
            assert (window.inputs[0] == ends[:lanes]).all()
        ends = window.targets[-1]
        found.update(zip(window.inputs[window.valid].tolist(), window.targets[window.valid].tolist(), strict=True))
        # One session more than fits may be in a batch, no more: so memory is bounded.
        assert window.valid.sum() <= batch_events + truncate
    assert found == expected


def test_a_robot_has_no_more_updates_than_people_with_as_many_events() -> None:
    people = [list(range(18)) for _ in range(600)]
    robot = list(range(18)) * 600

    def updates(*sessions: list[int]) -> int:
        made = sessions_of(*sessions)
        return sum(1 for _ in windows(made, 512, 32, seed=[1], longest=in_company(made, 512, 32)))

    assert updates(*people, *people) < updates(*people, robot) < 1.3 * updates(*people, *people)


def test_long_sessions_are_left_whole_where_there_are_many() -> None:
    made = sessions_of(*(list(range(n)) for n in [1000] * 15 + [900] + [5] * 100))
    assert in_company(made, 512, 32) == 899
    assert in_company(sessions_of([1, 2, 3]), 512, 32) == 256


def test_windows_are_the_same_for_the_same_seed_only() -> None:
    sessions = sessions_of(*([i, i + 1] for i in range(100)))

    def stream(seed: int) -> list[list[int]]:
        return [w.inputs.ravel().tolist() for w in windows(sessions, 8, 4, 2, [seed])]

    assert stream(1) == stream(1)
    assert stream(1) != stream(2)
