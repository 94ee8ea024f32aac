"""Moments, the states right before chosen events: exact, and without a trace in the result."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from services.consumer.advance import Placed, Wanted, advance_states
from shared.core.engagement import SAMPLE_ALL, sampled
from shared.core.state import UserState, encode_state
from tests.unit.test_replay_property import ITEMS, MODEL, NOW_MS, USERS, make_model

ALL = Wanted(SAMPLE_ALL, True)


def placed(n: int, user: str, item: str, until: int = 0) -> Placed:
    return Placed(user, item, NOW_MS + n, None, 0, 7, n, until)


def before(user: str, events: list[Placed], at: int) -> bytes:
    """The state of the user's own events before the one at this offset, one by one."""
    state = MODEL.start(1)
    for event in events:
        if event.user_id == user and event.offset < at and not event.dismissed_until:
            state = MODEL.advance(state, [MODEL.known([event.item_id])])
    return state.tobytes()


logs = st.lists(
    st.tuples(st.sampled_from(USERS), st.sampled_from(ITEMS), st.sampled_from([0, 0, 0, NOW_MS // 1000 + 60])),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(log=logs, cut=st.integers(0, 60), threshold=st.sampled_from([0, 1 << 30, 1 << 31, SAMPLE_ALL]))
def test_moments_are_the_states_before_and_change_nothing(log, cut, threshold):
    events = [placed(n, *event) for n, event in enumerate(log)]
    plain = {user: UserState() for user in USERS}
    watched = {user: UserState() for user in USERS}
    wanted = Wanted(threshold, unknown=True)
    moments = []
    for part in (events[:cut], events[cut:]):
        advance_states(plain, part, MODEL, 32)
        moments += advance_states(watched, part, MODEL, 32, wanted).moments
    assert {u: encode_state(s) for u, s in plain.items()} == {u: encode_state(s) for u, s in watched.items()}
    expected = [e for e in events if not e.dismissed_until]
    expected = [e for e in expected if sampled(0, e.offset, threshold) or e.item_id not in MODEL.index]
    assert [m.fresh.event for m in moments] == expected
    for moment in moments:
        event = moment.fresh.event
        assert moment.sampled == sampled(0, event.offset, threshold)
        assert moment.hidden is not None
        assert moment.hidden.tobytes() == before(event.user_id, events, event.offset)
        assert moment.fresh.warm == bool(moment.hidden.any())
        assert moment.fresh.item == MODEL.index.get(event.item_id, -1)


def test_what_was_applied_before_gives_no_moment():
    events = [placed(n, "u0", ITEMS[n % 5]) for n in range(10)]
    states = {"u0": UserState()}
    assert len(advance_states(states, events[:6], MODEL, 32, ALL).moments) == 6
    again = advance_states(states, events, MODEL, 32, ALL)
    assert [m.fresh.event.offset for m in again.moments] == [6, 7, 8, 9]
    assert again.redelivered == 6


def test_after_a_swap_the_first_moment_is_the_rebuilt_state():
    other = make_model(seed=3)
    events = [placed(n, "u0", ITEMS[n]) for n in range(5)]
    states = {"u0": UserState()}
    advance_states(states, events[:4], MODEL, 32, ALL)
    moments = advance_states(states, events[4:], other, 32, ALL).moments
    rebuilt = other.advance(other.start(1), [other.known(ITEMS[:4])])
    assert moments[0].hidden is not None
    assert moments[0].hidden.tobytes() == rebuilt.tobytes()


def test_without_a_model_every_moment_is_for_trending():
    moments = advance_states({"u0": UserState()}, [placed(0, "u0", "a"), placed(1, "u0", "b")], None, 32, ALL).moments
    assert [(m.hidden, m.fresh.warm, m.fresh.item) for m in moments] == [(None, False, -1)] * 2


def test_marks_in_many_tiles_come_back_in_their_order():
    rng = np.random.default_rng(1)
    sequences = [rng.integers(0, 7, size=rng.integers(0, 5)).tolist() for _ in range(1300)]
    marks = [(int(row), int(rng.integers(0, len(sequences[row]) + 1))) for row in rng.integers(0, 1300, size=200)]
    start = MODEL.start(len(sequences))
    after, states = MODEL.advance_recording(start, sequences, marks)
    assert after.tobytes() == MODEL.advance(start, sequences).tobytes()
    for (row, step), state in zip(marks, states, strict=True):
        assert state.tobytes() == MODEL.advance(MODEL.start(1), [sequences[row][:step]]).tobytes()


def test_the_sample_is_even():
    for threshold in (1 << 27, 1 << 30, 3 << 30):
        share = threshold / SAMPLE_ALL
        places = [o for o in range(40_000) if sampled(3, o, threshold)]
        assert abs(len(places) - 40_000 * share) < 10
        gaps = {b - a for a, b in itertools.pairwise(places)}
        assert len(gaps) <= 3  # the three-distance theorem
        assert max(gaps) < 4 / share
