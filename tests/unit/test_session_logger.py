"""The session logger's loop on twins: when it writes, what it says is wrong, and how it is asked to forget."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from shared.core.errors import Unavailable
from tests.servers import until
from tests.unit.session_log_world import Member, World


def logged_items(world: World) -> list[int]:
    return [int(item[1:]) for item, _ in world.logged()]


@contextmanager
def running(member: Member) -> Iterator[Member]:
    thread = threading.Thread(target=member.logger.run)
    thread.start()
    try:
        yield member
    finally:
        member.logger.stop()
        thread.join(30)
        assert not thread.is_alive()


def test_events_wait_for_their_time_or_their_number():
    world = World(flush_s=1e9, flush_events=5)
    member = world.member()
    world.send("a", "a", "a", "a")
    member.turns(3)
    assert world.storage.events() == []
    assert not member.logger.caught_up()
    world.send("a")
    member.turns(2)
    assert logged_items(world) == [0, 1, 2, 3, 4]
    assert member.logger.caught_up()


def test_no_more_records_are_in_memory_than_told():
    world = World(flush_s=1e9, flush_events=10, partitions=1)
    world.send(*["a"] * 95)
    member = world.member()
    most = 0
    for _ in range(12):
        member.logger.step()
        most = max(most, member.logger._pending())
    member.logger.stop()
    member.all()
    assert most <= 10
    assert logged_items(world) == list(range(95))
    assert len(world.storage.events()) == 10


def test_what_is_invalid_is_left_out_and_read_once():
    world = World(partitions=1)
    world.send("a")
    for bad in (b"{", None, b'{"user_id": "a", "item_id": "x", "event_type": "view", "ts": 1}'):
        world.broker.append("interactions", b"a", bad, timestamp=1_700_000_000_000)
    world.send("a")
    member = world.member()
    member.all()
    assert logged_items(world) == [0, 1]
    assert member.metrics.events.labels("invalid")._value.get() == 3
    last = world.member()
    last.all()
    assert last.metrics.events.labels("invalid")._value.get() == 0, "not read again"


def test_impressions_and_dismissals_are_kept():
    world = World()
    world.send("a", event_type="impression")
    world.send("a", event_type="dismiss")
    world.member().all()
    assert world.log().window()["event_type"].to_list() == ["impression", "dismiss"]


def test_a_full_disk_is_named_and_nothing_is_lost():
    world = World(partitions=1)
    member = world.member()
    world.send("a", "b")
    member.turns(1)
    world.storage.full = True
    world.send("a", "b")
    member.turns(4)
    assert "No space left on device" in member.logger.problem
    assert not member.logger.caught_up()
    position = member.logger._buffers[0].next
    world.send("a")
    member.turns(3)
    assert member.logger._buffers[0].next == position, "nothing more is read while nothing can be written"
    world.storage.full = False
    member.turns(3)
    assert member.logger.problem is None
    assert logged_items(world) == [0, 1, 2, 3, 4]
    assert member.logger.caught_up()


def test_stopping_writes_what_is_in_hand():
    world = World(flush_s=1e9, flush_events=100)
    member = world.member()
    with running(member):
        until(lambda: member.logger.problem is None, 10, "never began")
        world.send("a", "b")
        until(lambda: member.logger._pending() == 2, 10, "never read them")
        assert world.logged() == []
    assert logged_items(world) == [0, 1]


def test_forgetting_on_request_comes_after_all_wishes_and_all_events():
    world = World(flush_s=1e9, flush_events=100)
    member = world.member()
    with running(member):
        world.send("a", "b", "a")
        until(lambda: member.logger._pending() == 3, 10, "never read them")
        world.forget("a")
        world.broker.append("forgets", b"x", b"no forget at all")
        member.logger.apply_forgets(30)
        assert world.in_files() == {("i1", "b")}
        world.send("a")
        until(lambda: member.logger._pending() == 1, 10, "never read it")
        member.logger.apply_forgets(30)
        assert world.in_files() == {("i1", "b"), ("i3", "a")}


def test_a_request_that_cannot_be_served_says_why():
    world = World()
    world.send("a")
    world.storage.full = True
    member = world.member()
    with running(member):
        until(lambda: "No space" in (member.logger.problem or ""), 10, "no problem?")
        with pytest.raises(Unavailable, match="No space left on device"):
            member.logger.apply_forgets(0.2)
        world.storage.full = False
        member.logger.apply_forgets(30)
    assert logged_items(world) == [0]


def test_only_the_damaged_range_is_read_again():
    world = World(flush_events=3, partitions=1)
    world.send(*["a"] * 12)
    world.member().all()
    middle = world.storage.events()[1]
    world.storage.content[middle] = b"damaged"
    assert len(logged_items(world)) == 9
    member = world.member()
    member.all()
    assert member.metrics.events.labels("logged")._value.get() == 3
    assert logged_items(world) == list(range(12))


def test_what_a_training_finds_damaged_is_read_again_without_a_restart():
    world = World()
    member = world.member()
    member.logger._upkeep_s = 0.0
    world.send(*[f"u{n}" for n in range(40)])
    for _ in range(30):
        member.logger.step()
    assert len(world.logged()) == 40
    path = world.storage.events()[0]
    world.storage.content[path] = world.storage.content[path][:-5] + b"xxxxx"
    assert len(world.logged()) < 40  # set aside
    for _ in range(30):
        member.logger.step()
    assert logged_items(world) == list(range(40))


def test_a_topic_made_anew_with_fewer_partitions():
    world = World(partitions=2)
    world.send("a", "b", "c", "d")
    member = world.member()
    member.turns(3)
    world.broker.delete("interactions")
    member.turns(2)
    assert "no topic" in member.logger.problem
    world.broker.create("interactions", 1)
    world.send("a", "b")
    member.turns(4)
    assert member.logger.problem is None
    assert logged_items(world) == list(range(6))


def test_events_of_another_life_are_not_put_under_the_old_one():
    """kafka-python fetches by name: a topic made anew that has grown past our position goes on as if nothing were."""
    world = World(partitions=1)
    world.send("a", "b")
    member = world.member()
    member.turns(3)
    world.broker.delete("interactions")
    world.broker.create("interactions")
    world.send("a", "b", "c")
    member.turns(6)
    assert logged_items(world) == list(range(5))


def test_upkeep_runs_by_itself_and_is_told(monkeypatch):
    world = World(flush_events=1, partitions=1)
    world.send(*["a"] * 8)
    world.send(*["b"] * 8)
    world.member().all()
    world.forget("b")
    member = world.member()
    member.turns(2)
    member.logger._upkeep_s = 0.0
    member.turns(2)
    assert member.metrics.files._value.get() == len(world.storage.events()) == 1
    assert member.metrics.forgotten._value.get() == 8
    assert member.metrics.removed.labels("compacted")._value.get() == 16
    assert logged_items(world) == list(range(8))


def test_what_was_read_of_a_topic_that_is_gone_is_written_all_the_same():
    world = World(flush_s=1e9, flush_events=100, partitions=1)
    member = world.member()
    world.send("a", "b")
    member.turns(3)
    world.broker.delete("interactions")
    world.broker.create("interactions")
    world.send("c")
    member.turns(4)
    member.all()
    assert logged_items(world) == [0, 1, 2]


def test_a_user_is_forgotten_in_earlier_lives_of_the_topic_too():
    world = World()
    world.send("a", "b", "a")
    world.member().all()
    world.broker.delete("interactions")
    world.broker.create("interactions")
    world.send("a", "b")
    member = world.member()
    member.turns(3)
    world.forget("a")
    world.send("a")
    last = world.member()
    last.all()
    assert logged_items(world) == [1, 4, 5]
    last.log.apply_forgets()
    assert {int(item[1:]) for item, _ in world.in_files()} == {1, 4, 5}


def test_a_wish_that_cannot_be_stored_is_read_again():
    world = World()
    world.send("a", "b")
    member = world.member()
    member.turns(3)
    world.forget("a")
    world.storage.full = True
    member.logger._forgetting._read_at = float("-inf")
    member.turns(1)
    assert "No space" in member.logger.problem
    world.storage.full = False
    member.logger._forgetting._read_at = float("-inf")
    member.turns(2)
    assert logged_items(world) == [1]


def test_what_came_with_a_rebalance_is_read_from_where_the_log_says():
    """The last write before the partition went failed, so the log ends before what the same poll then brings."""
    world = World(flush_s=1e9, flush_events=100, partitions=1)
    member = world.member()
    world.send("a", "b")
    member.turns(2)
    world.storage.full = True
    member.source.revoke([0])
    world.storage.full = False
    world.send("c")
    member.source._positions[0] = 2  # handed back inside the poll that brings the third
    member.source._assigned.add(0)
    member.turns(3)
    member.all()
    assert logged_items(world) == [0, 1, 2]
