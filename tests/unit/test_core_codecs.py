"""Wire formats: what is written is read back, and what is damaged is said to be."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.adapters.settings import ConsumerSettings
from shared.core.errors import InvalidEvent, StateDamaged
from shared.core.events import MAX_TS_MS, EventRules, Interaction, decode, encode
from shared.core.items_codec import pack_item, pack_items, packed_size, unpack_items
from shared.core.progress import Progress, decode_progress, encode_progress
from shared.core.state import EVENT_IDS, UserState, decode_state, encode_state, token_of
from shared.core.trending import Trending

NOW = 1_700_000_000_000
RULES = EventRules()
GOOD = {"user_id": "u", "item_id": "i", "event_type": "view", "ts": NOW}

ids = (
    st.text(min_size=1, max_size=90)
    .filter(lambda s: 1 <= len(s.encode("utf-8", "ignore")) <= 256)
    .filter(lambda s: s.encode("utf-8", "ignore").decode() == s)
)
item_ids = st.one_of(ids, st.integers(0, 10**30).map(str), st.text("x", min_size=199, max_size=256))


@given(st.lists(item_ids, max_size=40))
def test_items_come_back_as_they_were(items):
    blob = pack_items(items)
    assert unpack_items(blob) == items
    at = 0
    for item in items:
        assert packed_size(blob, at) == len(pack_item(item))
        at += packed_size(blob, at)
    assert at == len(blob)


@pytest.mark.parametrize(
    ("item", "size"),
    [("a", 2), ("7", 2), ("123456789", 5), ("007", 4), ("x" * 200, 201), ("x" * 256, 258), ("9" * 19, 9),
     ("9" * 20, 21)],
)  # fmt: skip
def test_numbers_are_packed_small(item, size):
    assert len(pack_item(item)) == size
    assert unpack_items(pack_item(item)) == [item]


applied = st.dictionaries(
    st.integers(0, 2**32 - 1), st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**63)), max_size=20
)


@given(
    st.builds(
        UserState,
        token=st.binary(min_size=8, max_size=8),
        hidden=st.binary(max_size=300),
        fingerprint=st.integers(0, 2**64 - 1),
        last_ts=st.integers(-(2**63), 2**63 - 1),
        events=st.integers(0, 2**32 - 1),
        applied=applied,
        event_ids=st.integers(0, EVENT_IDS).flatmap(lambda n: st.binary(min_size=8 * n, max_size=8 * n)),
    ),
    st.lists(item_ids, max_size=40),
)
def test_a_state_comes_back_as_it_was(state, items):
    for item in items:
        state.push_item(item, 32)
    value = encode_state(state)
    back = decode_state(value)
    assert back.token == token_of(value) != state.token
    state.token = back.token
    assert back == state
    assert back.recent_items() == items[-32:]


def test_as_many_of_the_longest_items_as_a_setting_allows_fit():
    (most,) = (rule.le for rule in ConsumerSettings.model_fields["recent_items"].metadata if hasattr(rule, "le"))
    state = UserState()
    for n in range(most + 5):
        state.push_item(f"{n:<256}", most)
    assert len(decode_state(encode_state(state)).recent_items()) == most


@given(st.integers(0, 10_000), st.integers(0, 7))
def test_one_flipped_bit_is_noticed(place, bit):
    state = UserState(hidden=b"\x01\x02" * 8, events=3)
    state.push_item("item", 32)
    value = bytearray(encode_state(state))
    value[4 + place % (len(value) - 4)] ^= 1 << bit
    with pytest.raises(StateDamaged):
        decode_state(bytes(value))


def test_a_usual_state_fits_in_512_bytes():
    state = UserState(hidden=bytes(256), fingerprint=1, applied={3: (7, 10**9)})
    for n in range(40):
        state.push_item(str(214_800_000 + n), 32)
    assert len(encode_state(state)) <= 512


@given(st.lists(st.sampled_from([f"e{n}" for n in range(25)]), max_size=60))
def test_an_event_id_counts_once_among_the_last_sixteen(event_ids):
    state, window = UserState(), []
    for event_id in event_ids:
        assert state.remember_event_id(event_id) == (event_id not in window)
        if event_id not in window:
            window = [*window, event_id][-EVENT_IDS:]


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(NOW, NOW + 10**8)), max_size=50), st.randoms())
def test_trending_does_not_depend_on_the_order(events, rng):
    one, other = Trending(3600, 100), Trending(3600, 100)
    for item, ts in events:
        one.add(item, ts)
    rng.shuffle(events)
    for item, ts in events:
        other.add(item, ts)
    totals = [sum(w for _, w in t.top(9)) or 1.0 for t in (one, other)]
    first, second = ({i: w / total for i, w in t.top(9)} for t, total in zip((one, other), totals, strict=True))
    assert first == pytest.approx(second, abs=1e-9)


def test_trending_forgets_half_in_a_half_life_and_merges():
    one, other = Trending(3600, 10), Trending(3600, 10)
    for _ in range(4):
        one.add("old", NOW)
    other.add("new", NOW + 3 * 3600 * 1000)
    one.merge(*other.snapshot())
    weights = dict(one.top(2))
    assert weights["new"] == pytest.approx(2 * weights["old"])
    assert [item for item, _ in one.top(2)] == ["new", "old"]


def test_trending_stays_bounded_and_keeps_the_popular():
    trending = Trending(3600, 10)
    for n in range(5000):
        trending.add(f"rare-{n}", NOW)
        trending.add("popular", NOW)
    assert len(trending._weights) <= 80
    assert trending.top(1)[0][0] == "popular"


def test_progress_comes_back_and_damage_is_noticed():
    progress = Progress("life", 2, 77, NOW, [("a", 1.5)])
    value = encode_progress(progress, b"")
    assert decode_progress(value) == progress
    assert encode_progress(progress, value)[:8] != value[:8]
    with pytest.raises(StateDamaged):
        decode_progress(value[:-1])
    with pytest.raises(StateDamaged):
        decode_progress(b"")


@given(st.builds(Interaction, ids, ids, ids, st.integers(NOW - 10**9, NOW), *[st.none() | ids] * 3))
def test_an_interaction_comes_back_as_it_was(event):
    assert decode(encode(event), NOW, RULES) == event


@pytest.mark.parametrize(
    ("change", "field", "reason"),
    [
        ({"user_id": None}, "user_id", "Expected `str`"),
        ({"user_id": ""}, "user_id", "0 bytes"),
        ({"item_id": "é" * 129}, "item_id", "258 bytes"),
        ({"item_id": 5}, "item_id", "Expected `str`, got `int`"),
        ({"event_type": ["view"]}, "event_type", "Expected `str`"),
        ({"ts": "now"}, "ts", "Expected `int`"),
        ({"ts": True}, "ts", "Expected `int`"),
        ({"ts": NOW / 1000}, "ts", "Expected `int`"),
        ({"ts": NOW // 1000}, "ts", "too small for milliseconds"),
        ({"ts": NOW * 1000}, "ts", "in the future"),
        ({"ts": NOW + 86_400_001}, "ts", "EVENT_MAX_FUTURE_S"),
        ({"event_id": ""}, "event_id", "0 bytes"),
        ({"session_id": 4}, "session_id", "Expected `str | null`"),
    ],
)
def test_what_breaks_the_contract_is_named(change, field, reason):
    with pytest.raises(InvalidEvent) as caught:
        decode(json.dumps(GOOD | change).encode(), NOW, RULES)
    assert caught.value.field == field
    assert reason in caught.value.reason


def test_no_rule_allows_a_time_beyond_the_year_9999():
    tolerant = EventRules(max_future_ms=10**18)
    assert decode(json.dumps(GOOD | {"ts": MAX_TS_MS}).encode(), NOW, tolerant).ts == MAX_TS_MS
    with pytest.raises(InvalidEvent, match="in the future"):
        decode(json.dumps(GOOD | {"ts": MAX_TS_MS + 1}).encode(), NOW, tolerant)


@pytest.mark.parametrize("missing", ["user_id", "item_id", "event_type", "ts"])
def test_a_missing_field_is_named(missing):
    with pytest.raises(InvalidEvent) as caught:
        decode(json.dumps({k: v for k, v in GOOD.items() if k != missing}).encode(), NOW, RULES)
    assert (caught.value.field, caught.value.reason) == (missing, "missing")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "null"),
        (b"", "not JSON"),
        (b"[1, 2]", "Expected `object`"),
        (b'"text"', "Expected `object`"),
        (b'{"user_id": "\xff"}', "UTF-8"),
        (b'{"user_id": "\\ud800", "item_id": "i", "event_type": "v", "ts": 1700000000000}', "not JSON"),
        (b" " * 70_000, "EVENT_MAX_BYTES"),
        (b"[" * 60_000, "Expected `object`|not"),
    ],
)
def test_what_is_no_event_at_all(value, reason):
    with pytest.raises(InvalidEvent, match=reason):
        decode(value, NOW, RULES)


@given(st.binary(max_size=300))
def test_random_bytes_never_raise_anything_else(value):
    with pytest.raises(InvalidEvent):
        decode(value, NOW, RULES)


def test_which_types_advance():
    assert RULES.advances("view")
    assert not RULES.advances("impression")
    only = EventRules(advancing_types=frozenset({"buy"}))
    assert only.advances("buy")
    assert not only.advances("view")
