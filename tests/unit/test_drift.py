"""Drift: what must alarm and when, what must not, and that neither a restart nor a redelivery changes it."""

from __future__ import annotations

import random
from itertools import pairwise
from statistics import median

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.core import hit_track
from shared.core.drift import MAX_REPEATS, MAX_TRACKS, Alarm, DriftMonitor, DriftRules
from shared.core.engagement import EngagementBatch, engagement_batch
from shared.core.errors import StateDamaged

RULES = DriftRules()
SIZE = 50
"""Events of the same clock: one batch where nothing says otherwise."""


def batch(hits: list[bool], first: int = 0, version: str = "1", partition: int = 0, life: int = 7) -> EngagementBatch:
    """One outcome an event."""
    outcomes = [(first + n, 3 if hit else 0) for n, hit in enumerate(hits)]
    covered = (first, first + len(hits))
    strategy = "gru" if version else "trending"
    ts = first - first % SIZE
    return engagement_batch((version, strategy), partition, life, covered, len(hits), outcomes, ts, {})


def hits(rng: random.Random, rate: float, events: int) -> list[bool]:
    return [rng.random() < rate for _ in range(events)]


class Feed:
    """Feeds a monitor in batches; its clock says one second an event, so does the events' time."""

    def __init__(self, rules: DriftRules = RULES, champion: str = "1") -> None:
        self.monitor = DriftMonitor(rules)
        self.monitor.champion = champion
        self.alarms: list[Alarm] = []
        self.events = 0

    def give(self, outcomes: list[bool], version: str = "1", size: int = SIZE) -> Feed:
        for at in range(0, len(outcomes), size):
            part = outcomes[at : at + size]
            _, alarm = self.monitor.take(batch(part, self.events, version), 1000 * self.events)
            self.events += len(part)
            if alarm:
                self.alarms.append(alarm)
        return self


@pytest.mark.parametrize("rate", [0.02, 0.2, 0.5, 0.9])
def test_no_alarm_on_200_000_stationary_events(rate: float):
    assert Feed().give(hits(random.Random(f"stationary/{rate}"), rate, 200_000), size=500).alarms == []


def test_a_fall_from_50_to_40_percent_alarms_within_1500_events():
    seen = []
    for seed in range(20):
        rng = random.Random(seed)
        feed = Feed().give(hits(rng, 0.5, 5000))
        assert feed.alarms == []
        feed.give(hits(rng, 0.4, 6000), size=1)
        first = feed.alarms[0]
        assert first.before == pytest.approx(0.5, abs=0.03)
        assert first.repeat == 0
        seen.append((first.at // 1000 - 5000, first.after, first.since - 5000))
    delays, after, since = zip(*seen, strict=True)
    assert median(delays) < 1500
    assert median(after) == pytest.approx(0.4, abs=0.03)
    assert median(since) == pytest.approx(0, abs=200)


def test_a_rise_is_no_alarm_and_the_fall_back_is_one():
    rng = random.Random(1)
    feed = Feed().give(hits(rng, 0.3, 4000) + hits(rng, 0.5, 4000))
    assert feed.alarms == []
    assert feed.monitor.track("1").window().rate == pytest.approx(0.5, abs=0.03)
    assert feed.give(hits(rng, 0.3, 1000)).alarms[0].before == pytest.approx(0.5, abs=0.03)


def test_a_small_fall_is_no_alarm_but_many_of_them_are():
    rng = random.Random(1)
    feed = Feed(DriftRules(least_fall=0.1)).give(hits(rng, 0.5, 30_000) + hits(rng, 0.47, 30_000))
    assert feed.monitor.track("1").window().events < 31_000  # it was noticed
    assert feed.alarms == []
    feed.give(hits(rng, 0.44, 30_000))
    assert feed.alarms[0].before == pytest.approx(0.5, abs=0.02)


def test_no_alarm_before_the_minimum_of_events_but_as_soon_as_there_are_so_many():
    rng = random.Random(2)
    early = hits(rng, 0.6, 600) + hits(rng, 0.1, 1300)
    assert Feed(DriftRules(least_events=300)).give(early, size=1).alarms[0].at < 800_000
    waiting = Feed(DriftRules(least_events=1800)).give(early, size=1)
    assert [alarm.at // 1000 for alarm in waiting.alarms] == [pytest.approx(1800, abs=hit_track.CHECK_EVERY)]
    assert waiting.alarms[0].before == pytest.approx(0.6, abs=0.05)


def test_an_alarm_repeats_after_each_cool_down_twice_as_long_until_it_is_given_up():
    rng = random.Random(3)
    feed = Feed(DriftRules(cooldown_s=1000)).give(hits(rng, 0.5, 4000) + hits(rng, 0.2, 80_000), size=1)
    at = [alarm.at // 1000 for alarm in feed.alarms]
    gaps = [later - earlier for earlier, later in pairwise(at)]
    assert [alarm.repeat for alarm in feed.alarms] == list(range(MAX_REPEATS + 1))
    assert gaps == [pytest.approx(1000 * 2**n, abs=hit_track.CHECK_EVERY) for n in range(MAX_REPEATS)]
    assert {alarm.before for alarm in feed.alarms} == {feed.alarms[0].before}


def test_a_level_that_comes_back_ends_the_fall():
    rng = random.Random(4)
    feed = Feed(DriftRules(cooldown_s=3000))
    feed.give(hits(rng, 0.5, 4000) + hits(rng, 0.3, 2000) + hits(rng, 0.5, 20_000))
    assert len(feed.alarms) == 1


@pytest.mark.parametrize(("rate", "alarms"), [(0.5, 0), (0.35, 1)])
def test_a_successor_that_does_not_bring_the_level_back_alarms_again(rate: float, alarms: int):
    rng = random.Random(5)
    feed = Feed(DriftRules(cooldown_s=2000)).give(hits(rng, 0.5, 4000) + hits(rng, 0.2, 1000))
    assert len(feed.alarms) == 1
    feed.monitor.champion = "2"
    feed.give(hits(rng, rate, 4000), "2")
    later = feed.alarms[1:]
    assert [(alarm.version, alarm.repeat) for alarm in later] == [("2", 1)] * alarms
    assert all(alarm.after == pytest.approx(rate, abs=0.05) for alarm in later)


def test_a_further_fall_does_not_wait_for_the_longer_cool_down():
    rng = random.Random(6)
    feed = Feed(DriftRules(cooldown_s=1000)).give(hits(rng, 0.6, 4000) + hits(rng, 0.4, 4000))
    assert [alarm.repeat for alarm in feed.alarms] == [0, 1, 2]  # the next would come 4,000 s after the last
    feed.give(hits(rng, 0.1, 1500))
    assert [alarm.repeat for alarm in feed.alarms][:4] == [0, 1, 2, 0]
    assert [alarm.since for alarm in feed.alarms[:4]] == [pytest.approx(at, abs=300) for at in (4000, 4000, 4000, 8000)]
    assert len({alarm.before for alarm in feed.alarms}) == 1


def test_only_the_champion_alarms():
    rng = random.Random(7)
    outcomes = hits(rng, 0.5, 3000) + hits(rng, 0.2, 2000)
    assert Feed(champion="2").give(outcomes).alarms == []
    assert Feed(champion="1").give(outcomes).alarms


def test_a_fall_does_not_begin_in_the_future():
    """Events may be ahead of the clock by as much as EVENT_MAX_FUTURE_S; a batch has the time of its newest."""
    rng, monitor = random.Random(5), DriftMonitor(RULES)
    monitor.champion = "1"
    alarms = []
    for at in range(0, 20_000, SIZE):
        given, now = batch(hits(rng, 0.5 if at < 10_000 else 0.2, SIZE), at), 1000 * at
        alarm = monitor.take(msgspec.structs.replace(given, ts=now + 12 * 3_600_000), now)[1]
        alarms += [(alarm, now)] if alarm else []
    assert alarms
    first, now = alarms[0]
    assert 8_000_000 <= first.since <= now


def test_quiet_keeps_quiet():
    rng = random.Random(8)
    feed = Feed().give(hits(rng, 0.5, 3000))
    feed.monitor.quiet(3_000_000, 5000)
    feed.give(hits(rng, 0.2, 4900))
    assert feed.alarms == []
    assert feed.give(hits(rng, 0.2, 200)).alarms


def test_tracks_that_nobody_uses_make_room_but_not_the_champion():
    feed = Feed()
    for version in range(1, 20):
        feed.give([True] * 100, str(version))
    kept = feed.monitor.encode()
    assert len(kept) < 2000
    again = DriftMonitor(RULES, kept)
    assert again.track("1").total == 100
    assert [again.track(str(v)).total for v in range(19, 19 - MAX_TRACKS + 1, -1)] == [100] * (MAX_TRACKS - 1)


@pytest.fixture
def _short_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hit_track, "KEEP", 1000)


@pytest.mark.usefixtures("_short_memory")
def test_a_long_stream_takes_bounded_room_and_still_alarms():
    rng = random.Random(9)
    feed = Feed().give(hits(rng, 0.5, 20_000))
    assert len(feed.monitor.encode()) < 2000
    assert feed.alarms == []
    assert feed.give(hits(rng, 0.3, 1000)).alarms[0].before == pytest.approx(0.5, abs=0.05)


LEVELS = st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.5, 0.55, 0.9]), st.integers(1, 900)), max_size=6)


class Restarted(Feed):
    """A feed that may be cut off anywhere: it goes on from what was last stored, and counts only what was said since.

    An event's clock is that of its batch in an uninterrupted feed.
    """

    value: bytes | None = None
    stored: tuple[int, int] = (0, 0)  # events, alarms

    def give_until(self, outcomes: list[bool], end: int) -> None:
        while self.events < end:
            at = self.events
            self.events = min(at - at % SIZE + SIZE, end)
            _, alarm = self.monitor.take(batch(outcomes[at : self.events], at), 1000 * (at - at % SIZE))
            self.alarms += [alarm] if alarm else []

    def store(self) -> None:
        self.value, self.stored = self.monitor.encode(), (self.events, len(self.alarms))

    def restart(self) -> None:
        self.monitor = DriftMonitor(self.monitor.rules, self.value)
        self.monitor.champion = "1"
        self.events = self.stored[0]
        del self.alarms[self.stored[1] :]


@settings(deadline=None, max_examples=150)
@given(levels=LEVELS, seed=st.integers(0, 99), data=st.data())
def test_a_restart_at_any_point_and_redelivery_change_nothing(levels, seed, data):
    rng = random.Random(seed)
    outcomes = [hit for rate, events in levels for hit in hits(rng, rate, events)]
    rules = DriftRules(least_events=100, cooldown_s=200, delta=0.05)  # many cuts
    plain = Feed(rules).give(outcomes)
    feed = Restarted(rules)
    for end in sorted(data.draw(st.lists(st.integers(1, len(outcomes) or 1), max_size=5))):
        feed.give_until(outcomes, min(end, len(outcomes)))
        if data.draw(st.booleans()):
            feed.store()
        if data.draw(st.booleans()):
            feed.restart()
        if feed.events:
            back = data.draw(st.integers(0, feed.events - 1))
            seen = batch(outcomes[back : feed.events], back)
            assert feed.monitor.take(seen, 0) == (None, None)
    feed.give_until(outcomes, len(outcomes))
    assert feed.alarms == plain.alarms
    assert feed.monitor.encode() == plain.monitor.encode()


def test_overlapping_batches_count_their_new_part():
    monitor = DriftMonitor(RULES)
    monitor.take(batch([True] * 10, first=100), 0)
    new, _ = monitor.take(batch([False] * 10, first=105), 0)
    assert new is not None
    assert (new.first_offset, new.next_offset, new.count) == (110, 115, 5)
    assert bytes(monitor.track("1").since(0)) == b"\1" * 10 + b"\0" * 5
    monitor.take(batch([True], first=0, life=8), 0)  # another life of the partition
    monitor.take(batch([True], first=0, partition=1), 0)
    assert monitor.track("1").total == 17


@pytest.mark.parametrize("value", [b"", b"\x90", b"{}", b"\x96\x09\x80\x90\xc0\x00\xc0"])
def test_a_damaged_state_is_refused(value: bytes):
    with pytest.raises(StateDamaged):
        DriftMonitor(RULES, value)
