"""What the services tell Prometheus: from the first scrape on, and of what is theirs alone."""

from __future__ import annotations

import time

import pytest
from prometheus_client import CollectorRegistry

from services.consumer.metrics import ConsumerMetrics
from services.recommender.metrics import RecommenderMetrics
from services.retrainer.metrics import RetrainerMetrics
from services.retrainer.session_log_metrics import SessionLogMetrics
from shared.adapters.memory import MemoryBroker, MemoryPublisher, MemoryStateStore
from shared.core.errors import Unavailable
from shared.core.ports import StoreMemory
from tests.unit.retrainer_twins import World
from tests.unit.test_replay_property import Member


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def test_a_partition_that_went_to_another_member_is_not_told_of(registry):
    for metrics, name in (
        (ConsumerMetrics(registry).lags, "driftwood_consumer_lag_records"),
        (SessionLogMetrics(registry).lag, "driftwood_session_log_lag_records"),
    ):
        metrics({0: 5, 1: 7})
        metrics({1: 6, 2: 1})
        values = [registry.get_sample_value(name, {"partition": str(n)}) for n in range(3)]
        assert values == [None, 6, 1], name
        metrics({})
        assert registry.get_sample_value(name, {"partition": "1"}) is None


@pytest.mark.parametrize(
    ("metrics", "name", "labels"),
    [
        (ConsumerMetrics, "driftwood_dead_letters_total", {"field": "ts"}),
        (ConsumerMetrics, "driftwood_dead_letters_total", {"field": "value"}),
        (ConsumerMetrics, "driftwood_consumer_events_total", {"outcome": "dead_letter"}),
        (ConsumerMetrics, "driftwood_consumer_rewinds_total", {"why": "Unavailable"}),
        (RecommenderMetrics, "driftwood_rank_refused_total", {"why": "overload"}),
        (RetrainerMetrics, "driftwood_drift_alarms_total", {"kind": "new"}),
        (RetrainerMetrics, "driftwood_model_swaps_total", {"why": "rollback"}),
        (RetrainerMetrics, "driftwood_trainings_total", {"reason": "drift", "outcome": "failed"}),
        (RetrainerMetrics, "driftwood_gate_total", {"decision": "kept back"}),
    ],
)
def test_what_alerts_wait_for_is_counted_from_zero(registry, metrics, name, labels):
    """A counter that appears with its first event has risen by nothing, as Prometheus sees it."""
    metrics(registry)
    assert registry.get_sample_value(name, labels) == 0


def test_how_full_the_store_is(registry):
    """Nothing until it is known: Redis that threw keys away last month would have thrown them away at our start."""
    names = [f"driftwood_redis_{name}" for name in ("used_memory_bytes", "max_memory_bytes", "evicted_keys")]
    metrics = ConsumerMetrics(registry)
    assert [registry.get_sample_value(name) for name in names] == [None, None, None]
    for told in (StoreMemory(700, 1000, 5000), StoreMemory(800, 1000, 5001)):
        metrics.store_memory(told)
        assert [registry.get_sample_value(name) for name in names] == list(told)


def test_the_time_of_the_last_commit_is_told_and_stands_still_where_none_completes(monkeypatch):
    def unacknowledged(*_: object):
        raise Unavailable("Kafka: not acknowledged within 30 s")

    broker, before = MemoryBroker(partitions=1), time.time()
    for topic in ("interactions", "state-updates", "engagement"):
        broker.create(topic)
    member = Member(broker, MemoryStateStore())
    committed = member.metrics.committed._value.get
    assert before <= committed() <= time.time()  # the start
    member.source.assign([0])
    member.metrics.committed.set(0)
    member.turns(1)
    assert committed() >= before
    member.metrics.committed.set(0)
    monkeypatch.setattr(MemoryPublisher, "flush", unacknowledged)
    member.turns(2)
    assert committed() == 0
    monkeypatch.undo()
    monkeypatch.setattr(member.partitions, "save", lambda: ({}, [0]))  # another owner was faster, each time
    member.turns(2)
    assert committed() == 0
    monkeypatch.undo()
    member.turns(2)
    assert committed() >= before


def test_the_champion_and_its_age_are_told_by_the_one_that_decides():
    world = World()
    world.step()
    assert world.value("driftwood_retrainer_decides") == 1
    assert world.value("driftwood_champion_version") == 0
    assert world.value("driftwood_model_age_seconds") == 0
    assert world.value("driftwood_model_max_age_seconds") == 7 * 86400
    world.publish(trained_at=world.now_ms() - 60_000)
    world.step()
    assert world.value("driftwood_champion_version") == 1
    assert world.value("driftwood_model_age_seconds") == pytest.approx(60, abs=1)
    assert world.value("driftwood_promotion_on_trial") == 0
    world.publish(trained_at=world.now_ms())
    world.step(2)
    assert world.value("driftwood_champion_version") == 2
    assert world.value("driftwood_promotion_on_trial") == 1


def test_the_age_is_told_while_a_training_is_due_or_off():
    world = World(auto=False)
    world.publish(trained_at=world.now_ms())
    world.step()
    world.seconds += 3600
    world.step()
    assert world.value("driftwood_model_age_seconds") == 3600
