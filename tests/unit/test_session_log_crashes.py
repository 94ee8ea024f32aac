"""The session log's own work, killed before and after each of its changes to the storage."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest

from shared.adapters.session_log import FileSessionLog
from tests.unit.session_log_world import LATER_MS, NEXT_DAY_MS, Killed, World

DAY_MS = NEXT_DAY_MS - LATER_MS


@pytest.fixture(scope="module")
def filled() -> World:
    """Two partitions of a few files each; a wish; two zombies' files across the borders of others. To be copied."""
    world = World(flush_events=3, flush_s=1e9)
    world.send(*"abcdcbaabcdcbaabcd")
    early = world.member()
    early.turns(2)
    world.flush_events = 4
    zombie = world.member()
    zombie.turns(1)
    world.flush_events = 3
    world.member().all()
    zombie.all()
    early.all()
    world.forget("a")
    world.send(*"ab" * 2)
    world.member().all()
    return world


def forget(log: FileSessionLog) -> None:
    log.apply_forgets()


def merge(log: FileSessionLog) -> None:
    log.upkeep(NEXT_DAY_MS)


def mend(log: FileSessionLog) -> None:
    log.window()


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("work", [forget, merge, mend])
def test_killed_at_any_change_nothing_is_lost_and_nothing_comes_back(
    filled: World, work: Callable[[FileSessionLog], None], before: bool
) -> None:
    changes = 0
    while True:
        world = copy.deepcopy(filled)
        if work is mend:
            spoil(world)
        world.storage.kill_in, world.storage.kill_before = changes, before
        try:
            work(world.log())
            finished = True
        except Killed:
            finished = False
        world.storage.kill_in = None
        for _ in range(2):  # what is found damaged is read again by the next
            world.log().window()
            world.member().all()
        assert world.logged() == sorted(world.expected.items(), key=lambda event: int(event[0][1:]))
        log = world.log()
        log.apply_forgets()
        assert world.in_files() == set(world.expected.items())
        log.upkeep(NEXT_DAY_MS)
        assert world.logged() == sorted(world.expected.items(), key=lambda event: int(event[0][1:]))
        if finished:
            break
        changes += 1
    assert changes >= 2, "there was something to do"


def spoil(world: World) -> None:
    for path in world.storage.events()[1::4]:
        world.storage.content[path] = world.storage.content[path][:-5]


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_killed_while_old_events_expire_reading_does_not_begin_again(filled: World, before: bool) -> None:
    changes = 0
    while True:
        world = copy.deepcopy(filled)
        life = next(iter(world.log().known_lives()))[1]
        ends = [world.log().missing(n, life, 0, 99) for n in (0, 1)]
        world.storage.kill_in, world.storage.kill_before = changes, before
        try:
            world.log(max_days=1).upkeep(LATER_MS + 3 * DAY_MS)
            finished = True
        except Killed:
            finished = False
        world.storage.kill_in = None
        assert [world.log().missing(n, life, 0, 99) for n in (0, 1)] == ends
        world.log(max_days=1).upkeep(LATER_MS + 3 * DAY_MS)
        assert world.logged() == []
        assert [world.log().missing(n, life, 0, 99) for n in (0, 1)] == ends
        assert len(world.storage.events()) == 2
        if finished:
            break
        changes += 1
    assert changes > 4
