"""The property of the session log: whatever happens, each event is in it once, and forgotten ones are in no file."""

from __future__ import annotations

import contextlib

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.session_log_world import NEXT_DAY_MS, Killed, Member, World

happenings = st.one_of(
    st.tuples(st.just("send"), st.text("abcd", min_size=1, max_size=20)),
    st.tuples(st.just("send"), st.text("abcd", min_size=1, max_size=20)),
    st.tuples(st.just("turns"), st.integers(1, 3)),
    st.tuples(st.just("killed at a change"), st.tuples(st.integers(0, 4), st.booleans())),
    st.tuples(st.just("killed in upkeep"), st.tuples(st.integers(0, 6), st.booleans())),
    st.tuples(st.just("killed while forgetting"), st.tuples(st.integers(0, 3), st.booleans())),
    st.tuples(st.just("zombie"), st.integers(1, 7)),
    st.tuples(st.just("zombies write"), st.integers(1, 2)),
    st.tuples(st.just("hand over"), st.none()),
    st.tuples(st.just("upkeep"), st.none()),
    st.tuples(st.just("forget"), st.sampled_from("abcd")),
    st.tuples(st.just("apply forgets"), st.none()),
    st.tuples(st.just("disk full"), st.none()),
    st.tuples(st.just("broker away"), st.none()),
    st.tuples(st.just("damage"), st.tuples(st.integers(0, 9), st.integers(0, 9999))),
    st.tuples(st.just("topic anew"), st.none()),
)


class Story:
    """A world and the member at work in it."""

    def __init__(self, flush_s: float, flush_events: int) -> None:
        self.world = World(flush_s, flush_events)
        self.member = self.world.member()
        self.zombies: list[Member] = []

    def happen(self, what: str, how) -> None:
        getattr(self, what.replace(" ", "_"))(how)

    def send(self, users) -> None:
        self.world.send(*users)

    def turns(self, count) -> None:
        self.member.turns(count)

    def _until_killed(self, how, work) -> None:
        storage = self.world.storage
        storage.kill_in, storage.kill_before = how
        with contextlib.suppress(Killed):
            work()
        storage.kill_in = None
        self.member = self.world.member()

    def killed_at_a_change(self, how) -> None:
        self._until_killed(how, lambda: self.member.turns(4))

    def killed_in_upkeep(self, how) -> None:
        self._until_killed(how, lambda: self.member.log.upkeep(NEXT_DAY_MS))

    def killed_while_forgetting(self, how) -> None:
        self.member.turns(2)
        self._until_killed(how, self.member.log.apply_forgets)

    def zombie(self, flush_events) -> None:
        """With something in hand. The next one has buffers of another size, so that ranges overlap in all ways."""
        self.member.turns(1)
        self.zombies.append(self.member)
        self.world.flush_events = flush_events
        self.member = self.world.member()

    def zombies_write(self, count) -> None:
        for zombie in self.zombies:
            zombie.turns(count)

    def hand_over(self, _) -> None:
        self.member.source.revoke([0, 1])
        self.member = self.world.member()

    def upkeep(self, _) -> None:
        self.member.log.upkeep(NEXT_DAY_MS)

    def forget(self, user) -> None:
        self.world.forget(user)
        self.member = self.world.member()  # its first turn reads the wish

    def apply_forgets(self, _) -> None:
        self.member.log.apply_forgets()

    def disk_full(self, _) -> None:
        self.world.storage.full = True
        self.member.turns(3)
        self.world.storage.full = False

    def broker_away(self, _) -> None:
        self.world.broker.available = False
        self.member.logger.step()
        self.world.broker.available = True

    def damage(self, how) -> None:
        """Only what Kafka still has can be read again: files of the present life."""
        life = f"-{self.member.log.incarnation(0, self.world.broker.topics['interactions'].life, 10**9):08x}-"
        files = [path for path in self.world.storage.events() if life in path]
        if files:
            path = files[how[0] % len(files)]
            content = bytearray(self.world.storage.content[path])
            content[how[1] % len(content)] ^= 1
            self.world.storage.content[path] = bytes(content)

    def topic_anew(self, _) -> None:
        self.settle()
        self.world.broker.delete("interactions")
        self.member.logger.step()
        self.world.broker.create("interactions")

    def settle(self) -> None:
        """All that was sent is read. Reading the log finds what is damaged; the next member mends it."""
        for _ in range(3):
            self.member = self.world.member()
            self.member.all()
            self.world.log().window()
        self.member = self.world.member()


@settings(max_examples=60, deadline=None)
@given(st.lists(happenings, min_size=4, max_size=25), st.sampled_from([0.0, 1e9]), st.integers(1, 7))
def test_each_event_is_logged_once_and_forgotten_ones_are_gone(story, flush_s, flush_events):
    told = Story(flush_s, flush_events)
    world = told.world
    for what, how in story:
        told.happen(what, how)
    for zombie in told.zombies:
        zombie.all()
    told.settle()
    expected = sorted(world.expected.items(), key=lambda event: int(event[0][1:]))
    assert world.logged() == expected
    last = world.log()
    last.apply_forgets()
    assert world.in_files() == set(expected)
    assert world.logged() == expected
    last.upkeep(NEXT_DAY_MS)
    last.upkeep(NEXT_DAY_MS)
    assert world.logged() == expected
    assert last.summary().damaged == 0


@settings(max_examples=100, deadline=None)
@given(
    before=st.text("abcd", min_size=1, max_size=20),
    after=st.text("abcd", max_size=20),
    lost=st.integers(1, 30),
    running=st.booleans(),
    flush_events=st.integers(1, 7),
)
def test_what_a_broker_lost_and_what_took_its_offsets_are_in_the_log_once(before, after, lost, running, flush_events):
    """Also where the new events reach beyond the lost ones. A logger that is started again sees them come."""
    world = World(0.0, flush_events)
    world.send(*before)
    member = world.member()
    for _ in range(60):
        member.turns(1)
    for partition in (0, 1):
        world.broker.lose_end("interactions", partition, lost)
    if not running:
        member = world.member()
        member.turns(3)
    world.send(*after)
    for _ in range(60):
        member.turns(1)
    world.member().all()
    assert sorted(world.logged()) == sorted(world.expected.items())
