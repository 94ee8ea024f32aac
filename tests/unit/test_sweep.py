"""The sweep after a change of model: every state of ours is rebuilt, none twice, and the recommender hears of it."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from services.consumer.metrics import ConsumerMetrics
from services.consumer.sweep import Sweep
from shared.adapters.memory import MemoryBroker, MemoryPublisher, MemoryStateStore
from shared.core.errors import Unavailable
from shared.core.ports import StateWrite
from shared.core.ranking import decode_update
from shared.core.state import NO_TOKEN, UserState, decode_state, encode_state
from tests.unit.test_replay_property import ITEMS, make_model

OLD, NEW = make_model(0), make_model(1)


class World:
    """States of partitions 0 to 2, made by the old model; this member owns 0 and 1."""

    def __init__(self, users: int = 900) -> None:
        self.store, self.broker = MemoryStateStore(), MemoryBroker()
        self.broker.create("state-updates")
        self.model = OLD
        self.owned: dict[int, object] = {0: None, 1: None}
        self.metrics = ConsumerMetrics(CollectorRegistry())
        for n in range(users):
            self.put(f"u{n}", n % 3, [ITEMS[n % 7], ITEMS[n % 9]])
        self.sweep = Sweep(
            self.store,
            lambda: MemoryPublisher(self.broker),
            "state-updates",
            lambda: self.model,
            lambda: self.owned,  # type: ignore[arg-type, return-value]
            0.0,
            1e9,
            self.metrics,
        )

    def put(self, user: str, partition: int, items: list[str], fingerprint: int = OLD.fingerprint) -> None:
        state = UserState(events=len(items), fingerprint=fingerprint, applied={partition: (1, 5)}, last_ts=7)
        for item in items:
            state.push_item(item, 32)
        state.hidden = OLD.advance(OLD.start(1), [OLD.known(items)]).tobytes()
        self.store.write([StateWrite(user, NO_TOKEN, encode_state(state))])

    def state(self, user: str) -> UserState:
        return decode_state(self.store.users[user])

    def told(self) -> list[str]:
        """Users named to the recommender; a message's key is their partition."""
        users = []
        for record in self.broker.records("state-updates"):
            named = decode_update(record.value or b"").users
            assert {next(iter(self.state(user).applied)) for user in named} == {int(record.key or b"-1")}
            users += named
        return users


def test_every_state_of_our_partitions_is_rebuilt_and_told_of_once():
    world = World()
    before = dict(world.store.users)
    world.model = NEW
    assert world.sweep.turn()
    ours = {f"u{n}" for n in range(900) if n % 3 < 2}
    for user, value in world.store.users.items():
        state, old = decode_state(value), decode_state(before[user])
        if user not in ours:
            assert value == before[user]
            continue
        items = state.recent_items()
        assert (state.fingerprint, items) == (NEW.fingerprint, old.recent_items())
        assert state.hidden == NEW.advance(NEW.start(1), [NEW.known(items)]).tobytes()
        assert (state.events, state.last_ts, state.applied) == (old.events, old.last_ts, old.applied)
    assert sorted(world.told()) == sorted(ours)
    assert world.metrics.swept._value.get() == len(ours)
    assert world.metrics.sweep_left._value.get() == 0


def test_nothing_is_done_where_nothing_is_left():
    world = World()
    world.model = NEW
    assert world.sweep.turn()
    values, told = dict(world.store.users), world.told()
    assert not world.sweep.turn()
    other = World()
    other.store, other.sweep._store = world.store, world.store
    other.model = NEW
    assert other.sweep.turn()  # after a restart: looked at, found to be done
    assert (world.store.users, other.told(), world.told()) == (values, [], told)


def test_a_partition_taken_over_later_is_swept_too():
    world = World()
    world.model = NEW
    assert world.sweep.turn()
    world.owned[2] = None
    assert world.sweep.turn()
    assert {decode_state(value).fingerprint for value in world.store.users.values()} == {NEW.fingerprint}
    del world.owned[0]
    assert not world.sweep.turn()


def test_the_forgotten_and_the_damaged_are_left_alone():
    world = World(users=3)
    gone = UserState(applied={0: (1, 9)})
    world.store.write([StateWrite("gone", NO_TOKEN, encode_state(gone))])
    world.store.users["bad"] = b"12345678 no state"
    before = {user: world.store.users[user] for user in ("gone", "bad")}
    world.model = NEW
    assert world.sweep.turn()
    assert {user: world.store.users[user] for user in before} == before
    assert sorted(world.told()) == ["u0", "u1"]


def test_a_write_of_the_stream_that_comes_in_between_stands():
    world = World(users=3)
    world.model = NEW
    write = world.store.write

    def overtaken(writes, server_id="", keep_ttl=False):
        if keep_ttl:
            state = world.state("u0")
            state.events, state.fingerprint = 99, NEW.fingerprint
            write([StateWrite("u0", state.token, encode_state(state))])
        return write(writes, server_id, keep_ttl)

    world.store.write = overtaken  # type: ignore[method-assign]
    assert world.sweep.turn()
    assert world.state("u0").events == 99
    assert world.state("u1").fingerprint == NEW.fingerprint


def test_after_a_crash_between_telling_and_writing_it_is_told_again():
    world = World(users=3)
    world.model = NEW
    write, world.store.write = world.store.write, fail  # type: ignore[method-assign]
    with pytest.raises(Unavailable):
        world.sweep.turn()
    assert sorted(world.told()) == ["u0", "u1"]
    world.store.write = write  # type: ignore[method-assign]
    assert world.sweep.turn()
    assert sorted(world.told()) == ["u0", "u0", "u1", "u1"]
    assert world.state("u1").fingerprint == NEW.fingerprint


def fail(*_: object, **__: object) -> list[bool]:
    raise Unavailable("no")


def test_another_change_of_model_on_the_way_begins_anew_with_the_newest():
    world = World()
    third = make_model(2)
    world.model = NEW
    scan = world.store.scan

    def change(cursor: int, count: int):
        if cursor:
            world.model = third
        return scan(cursor, count)

    world.store.scan = change  # type: ignore[method-assign]
    assert not world.sweep.turn()
    assert world.sweep.turn()
    fingerprints = {world.state(f"u{n}").fingerprint for n in range(900) if n % 3 < 2}
    assert fingerprints == {third.fingerprint}


def test_back_to_the_old_model_before_the_new_one_was_swept_to_the_end():
    world = World()
    assert world.sweep.turn()  # all is the old model's
    world.model, scan = NEW, world.store.scan

    def change(cursor: int, count: int):
        if cursor:
            world.model = OLD
        return scan(cursor, count)

    world.store.scan = change  # type: ignore[method-assign]
    assert not world.sweep.turn()
    assert NEW.fingerprint in {world.state(f"u{n}").fingerprint for n in range(900)}
    world.store.scan = scan  # type: ignore[method-assign]
    assert world.sweep.turn()
    assert {world.state(f"u{n}").fingerprint for n in range(900)} == {OLD.fingerprint}


def test_it_waits_for_the_recommender_to_have_the_model():
    world = World(users=3)
    world.sweep._delay_s = 1000.0
    world.model = NEW
    assert not world.sweep.turn()
    assert world.told() == []
