"""The deciding retrainer: from a fall to a training, from a promotion to its trial, through crashes at any step."""

from __future__ import annotations

import time

import pytest

from services.retrainer.memory import Memory
from shared.adapters.memory_lease import MemoryLease
from shared.adapters.memory_registry import MemoryModelRegistry
from shared.core.drift import DriftRules
from shared.core.errors import ModelDamaged, StateDamaged, Unavailable
from tests.unit.retrainer_twins import GATE, LEASE_S, ROLLBACK_EVENTS, World


@pytest.fixture
def world() -> World:
    """Version 1 has been in service for a while."""
    world = World()
    world.publish()
    world.engage("1", 0.6, 1000)
    return world


def test_a_fall_is_noted_and_trained_on(world: World):
    assert world.trainer.started == 0
    world.engage("1", 0.2, 300)
    assert (world.trainer.started, world.trainer.running) == (1, True)
    (alarm,) = world.details("alarm")
    assert (alarm["version"], alarm["repeat"]) == ("1", 0)
    assert alarm["before"] == pytest.approx(0.6, abs=0.05)
    assert alarm["after"] < 0.4
    assert world.value("driftwood_drift_alarms_total", kind="new") == 1
    assert world.value("driftwood_training_running") == 1
    assert world.trainer.since_ms == alarm["since"] > 0


def test_a_training_waits_until_the_log_is_ready(world: World):
    world.log_problem = Unavailable("session log: busy")
    world.engage("1", 0.2, 300)
    assert (world.trainer.started, world.retrainer.problem) == (0, None)
    world.log_problem = None
    world.step()
    assert world.trainer.started == 1


def test_a_won_gate_is_noted_before_the_swap_and_the_training_ends(world: World):
    world.engage("1", 0.2, 300)
    version = world.publish(gate=GATE)
    world.step()
    world.trainer.end(published=version, promoted=True, gate=GATE, train_s=9.5)
    world.step(2)
    assert world.kinds() == ["swap", "alarm", "gate", "swap", "training"]
    assert world.details("swap")[1] == {"version": "2", "from": "1", "why": "gate"}
    assert world.details("gate") == [{"version": "2", **GATE}]
    assert world.details("training") == [
        {"reason": "drift", "outcome": "promoted", "version": "2", "seconds": 12.0, "train_s": 9.5}
    ]
    assert (world.trainer.started, world.trainer.running) == (1, False)
    assert world.value("driftwood_model_info", service="retrainer", version="2") == 1
    assert world.value("driftwood_trainings_total", reason="drift", outcome="promoted") == 1
    assert world.value("driftwood_gate_recall20", of="champion") == 0.4


def test_a_lost_gate_changes_nothing_until_the_alarm_repeats(world: World):
    world.engage("1", 0.2, 300)
    gate = {**GATE, "decision": "kept back"}
    world.publish(promote=False, gate=gate)
    world.trainer.end(published="2", promoted=False, gate=gate)
    world.engage("1", 0.2, 500)
    assert world.registry.current() == "1"
    assert world.trainer.started == 1
    world.seconds += 300  # the cool-down
    world.engage("1", 0.2, 100)
    assert world.trainer.started == 2
    assert [alarm["repeat"] for alarm in world.details("alarm")] == [0, 1]


def test_the_alarm_does_not_repeat_while_it_is_trained_on(world: World):
    world.engage("1", 0.2, 300)
    for _ in range(10):
        world.seconds += 100
        world.engage("1", 0.2, 50)
    world.trainer.end(published=None, promoted=False)
    world.step(2)
    world.seconds += 200
    world.engage("1", 0.2, 50)
    assert len(world.details("alarm")) == 1
    world.seconds += 101
    world.engage("1", 0.2, 50)
    assert len(world.details("alarm")) == 2


def test_a_training_that_breaks_is_tried_again_after_a_pause_that_grows(world: World):
    world.engage("1", 0.2, 300)
    for pause_s, failures in ((30, 1), (60, 2)):
        world.trainer.end(problem="exit code 1: no space left on device")
        world.step(2)
        world.seconds += pause_s - 1
        world.step(2)
        assert world.trainer.started == failures
        world.seconds += 2
        world.step()
        assert world.trainer.started == failures + 1
    assert world.details("training")[0] == {
        "reason": "drift", "outcome": "failed", "version": None, "seconds": 12.0,
        "problem": "exit code 1: no space left on device",
    }  # fmt: skip


def test_nothing_to_learn_is_no_failure(world: World):
    world.engage("1", 0.2, 300)
    world.trainer.end(published=None, promoted=False, gate=None)
    world.step(3)
    assert world.details("training")[0]["outcome"] == "nothing"
    assert (world.trainer.started, world.kinds().count("gate")) == (1, 0)


def test_a_training_killed_with_its_retrainer_is_begun_again(world: World):
    world.engage("1", 0.2, 300)
    world.start()
    world.step()
    assert world.trainer.started == 1
    assert world.kinds().count("alarm") == 1


def test_a_retrainer_killed_after_the_promotion_does_not_train_again(world: World):
    world.engage("1", 0.2, 300)
    world.publish(gate=GATE)
    world.start()
    world.step(3)
    assert world.trainer.started == 0
    assert world.kinds() == ["swap", "alarm", "gate", "swap"]


def test_a_cold_system_trains_as_soon_as_the_log_holds_enough():
    world = World()
    world.step(3)
    assert world.trainer.started == 0
    world.enough = True
    world.step(2)
    assert world.trainer.started == 1
    world.trainer.end(published="1", promoted=False, gate={"decision": "kept back"})
    world.step(2)
    assert world.trainer.started == 1  # not better than popularity: later again
    world.seconds += 301
    world.step(2)
    assert world.trainer.started == 2


def test_an_old_model_is_trained_anew_once_per_age():
    world = World(max_age_s=1000.0)
    world.publish(trained_at=world.now_ms())
    world.step()
    world.seconds += 1001
    world.step(2)
    assert world.trainer.started == 1
    assert world.value("driftwood_model_age_seconds") == pytest.approx(1001)
    world.trainer.end(published="2", promoted=False, gate={"decision": "kept back"})
    world.step(2)
    world.seconds += 999
    world.step(2)
    assert world.trainer.started == 1
    world.seconds += 2
    world.step(2)
    assert world.trainer.started == 2
    assert world.details("training")[0]["reason"] == "age"


def test_with_training_switched_off_alarms_are_only_noted():
    world = World(auto=False)
    world.enough = True
    world.step(3)
    world.publish()
    world.engage("1", 0.6, 1000)
    world.engage("1", 0.2, 300)
    assert (world.trainer.started, len(world.details("alarm"))) == (0, 1)


def test_a_bad_promotion_is_taken_back(world: World):
    world.publish()
    world.step()
    world.engage("2", 0.3, ROLLBACK_EVENTS)
    assert world.registry.current() == "1"
    (back,) = world.details("rollback")
    assert (back["version"], back["back_to"], back["why"]) == ("2", "1", "engagement")
    assert back["before"] == pytest.approx(0.6, abs=0.06)
    assert back["after"] < 0.5
    assert back["events"] in (100, 200, 400)
    assert back["p"] < 0.01
    world.engage("1", 0.6, 500)
    assert world.kinds() == ["swap", "swap", "rollback"]
    assert world.value("driftwood_model_swaps_total", why="rollback") == 1


@pytest.mark.parametrize("rate", [0.6, 0.9])
def test_a_good_promotion_stays(world: World, rate: float):
    world.publish()
    world.step()
    world.engage("2", rate, 2 * ROLLBACK_EVENTS)
    assert world.registry.current() == "2"
    assert world.kinds() == ["swap", "swap"]
    assert world.retrainer.describe()["on_trial"] is None


def test_a_promotion_after_a_fall_is_measured_by_the_level_after_it(world: World):
    """Not by the better days before: a model that brings back a part of what was lost stays."""
    world.engage("1", 0.2, 150)
    assert world.trainer.running
    world.publish(gate=GATE)
    world.step()
    world.engage("2", 0.3, 2 * ROLLBACK_EVENTS)
    assert world.registry.current() == "2"


def test_after_a_rollback_nothing_is_trained_for_a_while(world: World):
    world.engage("1", 0.2, 300)
    world.publish(gate=GATE)
    world.trainer.end(published="2", promoted=True, gate=GATE)
    world.step(2)
    world.seconds += 400  # the cool-down of the alarm is over
    world.engage("2", 0.0, ROLLBACK_EVENTS)
    assert world.registry.current() == "1"
    world.engage("1", 0.2, 500)
    assert world.trainer.started == 1
    world.seconds += 300
    world.engage("1", 0.2, 100)
    assert world.trainer.started == 2


@pytest.mark.parametrize(
    ("owner", "name", "works"),
    [
        (MemoryModelRegistry, "set_current", False),
        (MemoryModelRegistry, "set_current", True),
        (MemoryModelRegistry, "note", True),
        (MemoryLease, "write", False),
    ],
)
def test_a_crash_in_the_middle_of_a_rollback(
    world: World, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, works: bool
):
    """Just before a step, or just after it: the rollback is finished by the next, and noted once."""
    world.publish()
    world.step()
    world.engage("2", 0.0, 100)  # the first look: decided and stored
    assert world.registry.current() == "2"
    method = getattr(owner, name)

    def dying(*args: object, **kwargs: object) -> None:
        if works:
            method(*args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, dying)
    with pytest.raises(KeyboardInterrupt):
        world.step()
    monkeypatch.undo()
    world.start()
    world.step(3)
    assert world.registry.current() == "1"
    assert world.kinds() == ["swap", "swap", "rollback"]
    assert world.retrainer.describe()["champion"] == "1"


def test_going_back_by_hand_is_not_judged(world: World):
    world.publish()
    world.step()
    world.engage("2", 0.6, 2 * ROLLBACK_EVENTS)
    world.registry.set_current("1")
    world.step()
    world.engage("1", 0.1, 2 * ROLLBACK_EVENTS)
    assert world.registry.current() == "1"
    assert world.details("swap")[2] == {"version": "1", "from": "2", "why": "outside"}


@pytest.mark.parametrize("traffic", [True, False], ids=["with traffic", "a version before it that nobody judges by"])
def test_a_damaged_promotion_is_taken_back_after_some_patience(traffic: bool, monkeypatch: pytest.MonkeyPatch):
    world = World()
    world.publish()
    world.step()
    if traffic:
        world.engage("1", 0.6, 1000)
    world.publish()
    load = MemoryModelRegistry.load

    def damaged(self: MemoryModelRegistry, version: str):
        if version == "2":
            raise ModelDamaged("versions/2/weights.safetensors: checksum")
        return load(self, version)

    monkeypatch.setattr(MemoryModelRegistry, "load", damaged)
    world.step(3)
    assert world.registry.current() == "2"
    world.seconds += 8
    world.step()
    world.seconds += 8
    world.step(3)
    assert world.registry.current() == "1"
    assert world.details("rollback")[0]["why"] == "versions/2/weights.safetensors: checksum"


def test_a_version_that_takes_longer_to_read_than_the_lease_is_held_is_read_once(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    """The lease runs out meanwhile; each time anew it would, and the promotion would never be judged."""
    world.engage("1", 0.6, ROLLBACK_EVENTS)
    world.publish()
    load, loads = MemoryModelRegistry.load, []

    def slow(self: MemoryModelRegistry, version: str):
        loads.append(version)
        world.seconds += LEASE_S + 1
        return load(self, version)

    monkeypatch.setattr(MemoryModelRegistry, "load", slow)
    world.step(5)
    assert loads == ["2"]
    assert world.retrainer.describe()["decides"]
    world.engage("2", 0.1, ROLLBACK_EVENTS)
    world.step(4)
    assert world.registry.current() == "1"


def test_who_goes_back_to_a_version_by_hand_is_not_the_gate(world: World):
    """Also where that version had once come into service by the gate, in the place of another."""
    world.publish(gate=GATE, replaces="1")
    world.step()
    world.publish(gate=GATE, replaces="2")
    world.step()
    world.registry.set_current("2")
    world.step(2)
    assert [told["why"] for told in world.details("swap")[1:]] == ["gate", "gate", "outside"]


def test_for_each_training_the_log_is_made_ready(world: World):
    """Not by what was done for a reason that went away meanwhile."""
    world.log_busy = True
    world.engage("1", 0.2, 300)
    world.publish()
    world.step()  # what the training was due for is over
    world.prepared.set_result(None)
    world.log_busy = False
    assert (world.asked, world.trainer.started) == (1, 0)
    world.seconds += 700  # no alarm sooner
    world.engage("2", 0.6, 1000)
    world.engage("2", 0.2, 300)
    assert (world.asked, world.trainer.started) == (2, 1)


def test_a_retrainer_that_waits_asks_for_the_lease_often_enough_for_its_watchdog(world: World):
    other, _, _ = world.another()
    other._look_s = 180.0
    began = time.monotonic()
    other.step()
    assert time.monotonic() - began < 30


def test_only_the_holder_of_the_lease_decides(world: World):
    other, trainer, _ = world.another()
    other.step()
    assert other.describe() == {"decides": False}
    assert (other.problem, trainer.started) == (None, 0)
    world.engage("1", 0.2, 300)
    world.seconds += LEASE_S + 1  # the first one hangs
    other.step()
    assert trainer.started == 1  # what was due still is
    world.step()
    assert not world.trainer.running
    assert world.trainer.stopped == 1
    assert world.retrainer.describe() == {"decides": False}


TOLD_BY_WHO_DECIDES = (
    "driftwood_retrainer_decides",
    "driftwood_champion_version",
    "driftwood_model_age_seconds",
    "driftwood_promotion_on_trial",
    "driftwood_training_running",
    "driftwood_training_failures_in_a_row",
    "driftwood_model_versions",
)


def test_who_has_lost_the_lease_tells_nothing_more_of_what_only_the_other_knows(world: World):
    world.keep = 5
    world.start()
    world.seconds += 60
    world.engage("1", 0.2, 300)
    for _ in range(2):
        world.trainer.end(problem="exit code 1")
        world.step(2)
        world.seconds += 100
        world.step()
    world.publish(gate=GATE)
    world.trainer.end(published="2", promoted=True, gate=GATE)
    world.step(2)
    world.publish()
    world.engage("3", 0.2, 100)
    told = {name: world.value(name) for name in TOLD_BY_WHO_DECIDES}
    assert told["driftwood_champion_version"] == 3
    assert told["driftwood_promotion_on_trial"] == 1
    assert told["driftwood_model_versions"] == 3
    assert world.value("driftwood_engagement_hit_rate", version="3") is not None
    assert world.value("driftwood_gate_recall20", of="champion") == 0.4
    other, _, values = world.another()
    world.seconds += LEASE_S + 1
    other.step()
    other.step()
    world.step()
    assert values.get_sample_value("driftwood_champion_version") == 3
    assert {name: world.value(name) for name in TOLD_BY_WHO_DECIDES} == dict.fromkeys(TOLD_BY_WHO_DECIDES, 0)
    assert world.value("driftwood_model_info", service="retrainer", version="3") is None
    assert world.value("driftwood_engagement_hit_rate", version="3") is None
    assert world.value("driftwood_gate_recall20", of="champion") is None
    assert world.value("driftwood_trainings_total", reason="drift", outcome="failed") == 2


def test_it_says_that_it_decides_when_it_knows_the_version_in_service(world: World, monkeypatch: pytest.MonkeyPatch):
    """A scrape in between would see that the champion went to none and came back."""

    def told() -> tuple[float | None, float | None]:
        return world.value("driftwood_retrainer_decides"), world.value("driftwood_champion_version")

    seen, reader, current = [], World._reader, MemoryModelRegistry.current
    monkeypatch.setattr(World, "_reader", lambda self: (seen.append(told()), reader(self))[1])
    monkeypatch.setattr(MemoryModelRegistry, "current", lambda self: (seen.append(told()), current(self))[1])
    world.start()
    world.step()
    assert seen[:2] == [(0, 0), (0, 0)]
    assert told() == (1, 1)


def test_a_registry_that_is_away_at_first_leaves_nobody_deciding(world: World, monkeypatch: pytest.MonkeyPatch):
    def away(*_: object):
        raise Unavailable("model registry: away")

    monkeypatch.setattr(MemoryModelRegistry, "current", away)
    world.start()
    world.step(2)
    assert world.value("driftwood_retrainer_decides") == 0
    monkeypatch.undo()
    world.step()
    assert world.value("driftwood_retrainer_decides") == 1


def test_failures_in_a_row_are_told_until_a_training_ends_well_or_there_is_nothing_to_train(world: World):
    def told() -> float | None:
        return world.value("driftwood_training_failures_in_a_row")

    def breaks() -> None:
        world.trainer.end(problem="exit code 1")
        world.step(2)
        world.seconds += 100
        world.step()

    world.engage("1", 0.2, 300)
    assert told() == 0
    for failures in (1, 2):
        breaks()
        assert told() == failures
    world.leases.available = False  # for a moment: it still knows
    world.step()
    assert told() == 2
    world.leases.available = True
    world.start()  # another process
    world.step()
    assert told() == 2
    world.trainer.end(published=None, promoted=False)
    world.step()
    assert told() == 0
    world.seconds += 400
    world.engage("1", 0.2, 100)
    breaks()
    assert told() == 1
    world.publish()  # by hand
    world.step(2)
    assert told() == 0


def test_nothing_is_committed_that_is_not_stored(world: World, monkeypatch: pytest.MonkeyPatch):
    def away(*_: object):
        raise Unavailable("Redis: away")

    before = dict(world.committed)
    monkeypatch.setattr(MemoryLease, "write", away)
    world.batch("1", [0] * 50)
    world.step()
    assert world.retrainer.problem == "Redis: away"
    assert world.committed == before
    monkeypatch.setattr(MemoryLease, "write", lambda *_: False)  # the lease is lost between two calls
    world.step()
    assert (world.committed, world.retrainer.describe()) == (before, {"decides": False})
    monkeypatch.undo()
    world.step()
    assert world.retrainer.problem is None
    assert world.committed != before
    assert Memory(world.rules, world.leases.value).monitor.track("1").total == 1050


def test_redis_that_is_away_is_waited_for(world: World):
    world.leases.available = False
    world.step()
    assert "switched off" in str(world.retrainer.problem)
    assert world.value("driftwood_model_info", service="retrainer", version="1") is None  # it may be another's by now
    world.leases.available = True
    world.step()
    assert world.retrainer.describe()["champion"] == "1"
    assert world.value("driftwood_model_info", service="retrainer", version="1") == 1


def test_redelivered_engagement_counts_once(world: World):
    stored = Memory(world.rules, world.leases.value)
    events = stored.monitor.track("1").total
    world.committed.clear()
    world.start()
    world.step(2)
    assert world.committed
    assert Memory(world.rules, world.leases.value).monitor.track("1").total == events == 1000


def test_other_values_on_the_topic_are_passed_over(world: World):
    for value in (b"", b"{}", b"\xff", None):
        world.broker.append("engagement", b"1", value)
    world.step()
    assert world.value("driftwood_engagement_unreadable_total") == 4
    assert world.retrainer.problem is None


def test_a_broker_that_is_away_is_waited_for(world: World):
    world.broker.available = False
    world.step()
    assert "switched off" in str(world.retrainer.problem)
    world.broker.available = True
    world.engage("1", 0.2, 300)
    assert world.trainer.started == 1


def test_an_unreachable_registry_is_waited_for_and_the_alarm_noted_then(world: World, monkeypatch: pytest.MonkeyPatch):
    def away(*_: object):
        raise Unavailable("model registry: away")

    monkeypatch.setattr(MemoryModelRegistry, "note", away)
    world.engage("1", 0.2, 250)
    monkeypatch.undo()
    world.step(3)
    assert len(world.details("alarm")) == 1
    assert world.trainer.started == 1


def test_a_damaged_pointer_is_told_and_all_else_goes_on(world: World, monkeypatch: pytest.MonkeyPatch):
    def damaged(self: MemoryModelRegistry):
        raise ModelDamaged("models/current: names no version")

    monkeypatch.setattr(MemoryModelRegistry, "current", damaged)
    world.engage("1", 0.2, 300)
    assert world.retrainer.problem == "models/current: names no version"
    assert world.trainer.started == 1
    world.start()
    world.step()
    assert (world.value("driftwood_retrainer_decides"), world.value("driftwood_champion_version")) == (1, 1)
    monkeypatch.undo()
    world.step()
    assert world.retrainer.problem is None


def test_a_memory_that_cannot_be_read_is_begun_anew(world: World):
    world.leases.value = b"not ours"
    world.start()
    world.step()
    assert world.retrainer.problem is None
    assert world.retrainer.describe()["champion"] == "1"


@pytest.mark.parametrize("value", [b"", b"{}", b"\x80"])
def test_damaged_memory(value: bytes):
    with pytest.raises(StateDamaged):
        Memory(DriftRules(), value)
