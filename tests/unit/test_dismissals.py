"""Dismissed items: kept with the user, left out of rankings for their time, and never a step of the GRU."""

from __future__ import annotations

import contextlib
import struct
import time
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.recommender.forget import _emptied
from shared.core.dismissed import MOST, unpack_dismissed, with_dismissed
from shared.core.errors import StateDamaged
from shared.core.events import EventRules
from shared.core.state import UserState, decode_state, encode_state
from tests.unit.recommender_twins import Twin, ids

HOUR = 3600


@pytest.fixture
def twin():
    twin = Twin()
    yield twin
    twin.stop()


dismissals = st.lists(st.tuples(st.sampled_from(["a", "b", "77777777", "é" * 100]), st.integers(1, 100)), max_size=30)


@given(dismissals)
def test_the_latest_end_counts_and_what_ran_out_goes(log):
    blob, expected = b"", {}
    for now, (item, lasts) in enumerate(log):
        blob = with_dismissed(blob, item, now + lasts, now)
        end = max(now + lasts, expected.pop(item, 0))
        expected = {i: e for i, e in expected.items() if e > now} | {item: end}
    assert unpack_dismissed(blob) == list(expected.items())


def test_only_the_last_hundred_are_kept():
    blob = b""
    for n in range(MOST + 20):
        blob = with_dismissed(blob, f"item-{n}", 2 * HOUR, HOUR)
    assert [item for item, _ in unpack_dismissed(blob)] == [f"item-{n}" for n in range(20, MOST + 20)]


@given(st.binary(max_size=40))
def test_bytes_that_are_no_dismissals_are_said_to_be(blob):
    with contextlib.suppress(StateDamaged):
        unpack_dismissed(blob)


def test_a_state_comes_back_with_its_dismissals():
    state = UserState(hidden=bytes(16), fingerprint=3, applied={1: (2, 3), 5: (6, 7)})
    state.push_item("seen", 32)
    state.dismiss("a", 5 * HOUR, HOUR)
    state.dismiss("214748364", 6 * HOUR, HOUR)
    back = decode_state(encode_state(state))
    assert back.dismissed_items() == [("a", 5 * HOUR), ("214748364", 6 * HOUR)]
    assert back.recent_items() == ["seen"]
    assert back.applied == state.applied
    state.forget()
    assert state.dismissed_items() == []


def test_a_state_of_format_1_is_read():
    """As the consumer wrote it before there were dismissals."""
    head = struct.pack("<BHBBHHQqI", 1, 1, 1, 1, 4, 5, 9, 1_700_000_000_000, 12)
    body = head + b"\1\2\3\4" + struct.pack("<IIQ", 3, 7, 99) + b"eventid1" + b"\3item"
    state = decode_state(struct.pack("<II", 5, zlib.crc32(body)) + body)
    assert (state.hidden, state.fingerprint, state.events) == (b"\1\2\3\4", 9, 12)
    assert (state.applied, state.event_ids) == ({3: (7, 99)}, b"eventid1")
    assert (state.recent_items(), state.dismissed_items()) == (["item"], [])
    assert decode_state(encode_state(state)).recent_items() == ["item"]
    newer = bytes([9]) + body[1:]
    with pytest.raises(StateDamaged, match="format version 9"):
        decode_state(struct.pack("<II", 5, zlib.crc32(newer)) + newer)


def test_a_dismissal_advances_nothing_whatever_the_settings_say():
    rules = EventRules(advancing_types=frozenset({"dismiss", "view"}))
    assert not rules.advances("dismiss")
    assert rules.advances("view")
    assert EventRules(dismiss_types=frozenset()).advances("dismiss")


def test_forgetting_names_more_than_255_partitions():
    state = _emptied(None, dict.fromkeys(range(400), 5), {n: n for n in range(400)})
    assert decode_state(encode_state(state)).applied == {n: (5, n) for n in range(400)}


def test_a_dismissed_item_is_left_out_and_comes_back_in_time(twin):
    twin.act("u", "item-1", "item-2")
    whole = ids(twin.ranking("u", "?k=300"))
    now = time.time()
    twin.dismiss("u", whole[0], whole[3], "not-in-the-model", until_s=now + HOUR)
    kept = [item for item in whole if item not in (whole[0], whole[3])]
    for _ in range(2):  # made, then from memory
        assert ids(twin.ranking("u", "?k=20")) == kept[:20]
    assert ids(twin.ranking("u", f"?k=20&exclude={kept[0]}")) == kept[1:21]
    assert ids(twin.session(["item-1", "item-2"], k=20)) == whole[:20]
    twin.batches._clock = lambda: now + HOUR + 1
    assert ids(twin.ranking("u", "?k=20")) == whole[:20]


def test_a_hundred_dismissals_leave_the_answer_full(twin):
    twin.act("u", "item-1")
    whole = ids(twin.ranking("u", "?k=300"))
    twin.dismiss("u", *whole[:MOST], until_s=time.time() + HOUR)
    assert ids(twin.ranking("u", "?k=50")) == whole[MOST : MOST + 50]


def test_trending_leaves_it_out_too(twin):
    twin.popular(0, "a", "a", "b", "c")
    twin.dismiss("u", "b", until_s=time.time() + HOUR)
    assert ids(twin.ranking("u", "?k=2")) == ["a", "c"]
    assert ids(twin.ranking("other", "?k=2")) == ["a", "b"]


def test_the_topic_gets_the_ranking_without_it(twin):
    twin.act("u", "item-1")
    top = ids(twin.ranking("u", "?k=6"))
    twin.dismiss("u", top[1], until_s=time.time() + HOUR)
    assert ids(twin.ranking("u", "?k=5")) == [top[0], *top[2:]]
