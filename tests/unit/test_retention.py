"""Old model versions go, and nothing that anybody may still need."""

from __future__ import annotations

import pytest

from shared.core.errors import Unavailable
from tests.unit.retrainer_twins import GATE, World


def numbers(world: World) -> list[str]:
    return [manifest.version for manifest in world.registry.versions()]


def test_the_newest_stay_and_what_is_in_service_and_what_it_replaced() -> None:
    world = World(keep=2)
    for _ in range(3):
        world.publish()
    world.step(2)
    assert numbers(world) == ["2", "3"]
    world.publish(replaces="2", parent="2")
    for _ in range(4):
        world.publish(promote=False)
    world.step(2)
    # 4 is in service; 2 it replaced, 3 was in service before it; 7 and 8 are the newest
    assert numbers(world) == ["2", "3", "4", "7", "8"]
    assert world.value("driftwood_model_versions") == 5


def test_nothing_is_removed_where_the_setting_says_so() -> None:
    world = World(keep=0)
    for _ in range(5):
        world.publish()
    world.step(3)
    assert len(numbers(world)) == 5


def test_a_promotion_on_trial_keeps_the_version_that_it_may_have_to_make_room_for() -> None:
    world = World(keep=1)
    world.publish()
    world.engage("1", 0.6, 1000)
    world.publish(gate=GATE)
    for _ in range(3):
        world.publish(promote=False)
    world.step(3)
    assert numbers(world) == ["1", "2", "5"]
    world.engage("2", 0.2, 500)
    assert world.registry.current() == "1"
    assert world.details("rollback")[0]["version"] == "2"


def test_a_retrainer_that_lost_its_memory_keeps_it_too() -> None:
    world = World(keep=1)
    world.publish()
    world.engage("1", 0.6, 1000)
    world.publish(gate=GATE)
    world.step()
    world.leases.value = None
    world.start()
    world.publish(promote=False)
    world.step(3)
    assert numbers(world) == ["1", "2", "3"]


def test_nothing_is_removed_while_a_training_runs() -> None:
    world = World(keep=1)
    world.publish()
    world.engage("1", 0.6, 1000)
    world.engage("1", 0.2, 300)
    assert world.trainer.running
    for _ in range(3):
        world.publish(promote=False)
    world.step(3)
    assert numbers(world) == ["1", "2", "3", "4"]
    world.trainer.end(published="4", promoted=False, gate={**GATE, "decision": "kept back"})
    world.step(3)
    assert numbers(world) == ["1", "4"]


def test_only_the_one_that_decides_removes() -> None:
    world = World(keep=1)
    for _ in range(4):
        world.publish()
    world.step()
    other, _, _ = world.another()
    for _ in range(2):
        world.publish(promote=False)
    other.step()
    assert numbers(world) == ["4", "5", "6"]
    world.step()
    assert numbers(world) == ["4", "6"]


def test_a_full_disk_forgets_no_outcome_of_a_training() -> None:
    """What a training came to is told once: with the journal's disk full it was lost, and trained again at once."""
    world = World()
    world.publish()
    world.engage("1", 0.6, 1000)
    world.engage("1", 0.2, 300)
    assert world.trainer.running
    world.registry.full = True
    with pytest.raises(Unavailable, match="No space left"):
        world.publish()
    world.trainer.end(problem="exit code 2: model registry: No space left on device")
    world.step(3)
    assert "No space left" in (world.retrainer.problem or "")
    assert (world.trainer.started, world.details("training")) == (1, [])
    world.registry.full = False
    world.step(3)
    assert world.retrainer.problem is None
    (told,) = world.details("training")
    assert told["outcome"] == "failed"
    assert world.trainer.started == 1  # after its pause
    world.seconds += 31
    world.step(2)
    assert world.trainer.started == 2
