"""Label values as the services' own code writes them: seen in registries after the services, on their twins, lived
through what the rules and dashboards ask for."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from shared.adapters.memory import MemoryBroker, MemoryStateStore
from tests.promql import Values
from tests.unit.recommender_twins import Twin
from tests.unit.retrainer_twins import ROLLBACK_EVENTS, World
from tests.unit.test_replay_property import ITEMS, NOW_MS, Member, value


def lived() -> Values:
    """metric -> label -> values of what was counted at least once: being there at 0 tells nothing of who counts."""
    found: dict[str, dict[str, set[str]]] = {}
    for registry in (_read_events(), _gave_rankings(), _took_back_a_promotion()):
        for family in registry.collect():
            for sample in family.samples:
                for label, seen in sample.labels.items() if sample.value > 0 else ():
                    found.setdefault(sample.name, {}).setdefault(label, set()).add(seen)
    return {name: {label: frozenset(seen) for label, seen in labels.items()} for name, labels in found.items()}


def _read_events() -> CollectorRegistry:
    broker = MemoryBroker(partitions=1)
    for topic in ("interactions", "state-updates", "engagement"):
        broker.create(topic)
    for n, item in enumerate(ITEMS):
        broker.append("interactions", b"ada", value("ada", item, n), timestamp=NOW_MS)
    member = Member(broker, MemoryStateStore())
    member.source.assign([0])
    member.service.run(until_idle=True)
    return member.metrics.registry


def _gave_rankings() -> CollectorRegistry:
    twin = Twin()
    try:
        twin.act("ada", "item-1")
        for _ in range(2):
            twin.ranking("ada")
        twin.call("GET", "/readyz")
    finally:
        twin.stop()
    return twin.metrics.registry


def _took_back_a_promotion() -> CollectorRegistry:
    world = World()
    world.publish()
    world.engage("1", 0.6, ROLLBACK_EVENTS)
    world.publish()
    world.step()
    world.engage("2", 0.1, ROLLBACK_EVENTS)
    return world.metrics
