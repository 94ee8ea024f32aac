"""The deciding retrainer on the twins of its ports, with a training that ends when the test says so."""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import Future

from prometheus_client import CollectorRegistry

from services.retrainer.daemon import Retrainer
from services.retrainer.metrics import RetrainerMetrics
from services.retrainer.retention import Retention
from services.retrainer.rollback import Promotions
from services.retrainer.schedule import Schedule, TrainingRules
from services.retrainer.trainer import Outcome, Trainer
from shared.adapters.memory import MemoryBroker, MemoryRecord
from shared.adapters.memory_lease import LeaseServer, MemoryLease
from shared.adapters.memory_registry import MemoryModelRegistry
from shared.core.drift import DriftRules
from shared.core.engagement import encode_engagement, engagement_batch
from shared.core.errors import Unavailable
from shared.core.registry_port import ModelRegistry
from tests.unit.recommender_twins import ITEMS, weights

TOPIC = "engagement"
LEASE_S = 10.0
ROLLBACK_EVENTS = 400
GATE = {"decision": "promoted", "challenger": {"recall20": 0.5}, "champion": {"recall20": 0.4}}


class MemoryEngagement:
    """The EngagementReader port: one member that has the whole topic."""

    def __init__(self, broker: MemoryBroker, committed: dict[int, int]) -> None:
        self._broker, self._committed, self._at = broker, committed, dict(committed)
        self.closed = False

    def poll(self, timeout_s: float, max_records: int) -> list[MemoryRecord]:
        self._broker.check()
        new = [r for r in self._broker.records(TOPIC) if r.offset >= self._at.get(r.partition, 0)][:max_records]
        for record in new:
            self._at[record.partition] = record.offset + 1
        return new

    def commit(self, records: Sequence[MemoryRecord]) -> None:
        self._broker.check()
        for record in records:
            self._committed[record.partition] = record.offset + 1

    def close(self) -> None:
        self.closed = True


class ManualTrainer:
    """The Trainer port: a training runs until ``end``."""

    def __init__(self) -> None:
        self.started = 0
        self.since_ms = -1
        self.stopped = 0
        self._running = False
        self._outcome: Outcome | None = None

    @property
    def running(self) -> bool:
        return self._running

    def start(self, since_ms: int) -> None:
        assert not self._running
        self.since_ms = since_ms
        self._running, self.started = True, self.started + 1

    def outcome(self) -> Outcome | None:
        outcome, self._outcome = self._outcome, None
        self._running = self._running and outcome is None
        return outcome

    def stop(self) -> None:
        self.stopped += self._running
        self._running, self._outcome = False, None

    def end(self, problem: str = "", **result: object) -> None:
        assert self._running
        self._outcome = Outcome(12.0, result, problem)


class World:
    """Everything outside of one retrainer: stays when the retrainer is made anew with ``start``."""

    def __init__(
        self,
        rules: DriftRules | None = None,
        keep: int = 0,
        registry: ModelRegistry | None = None,
        trainer: Trainer | None = None,
        **options: object,
    ) -> None:
        self.keep = keep
        self._given = trainer
        self.rules = rules or DriftRules(least_events=200, cooldown_s=300)
        self.options = {"cold_check_s": 0.0, "cooldown_s": 300.0, **options}
        self.registry = registry or MemoryModelRegistry()
        self.broker = MemoryBroker()
        self.broker.create(TOPIC, 4)
        self.leases = LeaseServer(lambda: self.seconds)
        self.committed: dict[int, int] = {}
        self.seconds = 1_000_000.0
        self.published = 0
        self.enough = False
        self.log_problem: Unavailable | None = None
        self.log_busy = False
        self.asked = 0
        self.offset = 0
        self.rng = random.Random(1)
        self.start()

    def start(self) -> None:
        """A new process; the one before is gone without a word, and its lease with it."""
        self.seconds += LEASE_S
        self.retrainer, self.trainer, self.metrics = self.another()

    def another(self) -> tuple[Retrainer, ManualTrainer, CollectorRegistry]:
        """One more retrainer beside the one that is there."""
        trainer, values = self._given or ManualTrainer(), CollectorRegistry()
        metrics = RetrainerMetrics(values)
        promotions = Promotions(self.registry, metrics, self.now_ms, ROLLBACK_EVENTS, 0.01, self.rules.cooldown_s)
        schedule = Schedule(
            self.registry,
            trainer,
            self._prepare,
            lambda: self.enough,
            TrainingRules(**self.options),
            metrics,
            self.now_ms,
        )
        retrainer = Retrainer(
            MemoryLease(self.leases, LEASE_S),
            lambda: self._reader(),
            promotions,
            schedule,
            Retention(self.registry, metrics, self.keep, every_s=0.0),
            self.rules,
            metrics,
            self.now_ms,
            look_s=0.0,
            poll_s=0.0,
            store_s=0.0,
        )
        return retrainer, trainer, values

    def _prepare(self) -> Future[None]:
        self.prepared: Future[None] = Future()
        self.asked += 1
        if self.log_busy:
            pass  # until the test says so
        elif self.log_problem is None:
            self.prepared.set_result(None)
        else:
            self.prepared.set_exception(self.log_problem)
        return self.prepared

    def _reader(self) -> MemoryEngagement:
        if not self.broker.available:
            raise Unavailable("the broker in memory was switched off")
        return MemoryEngagement(self.broker, self.committed)

    def now_ms(self) -> int:
        return round(1000 * self.seconds)

    def publish(self, promote: bool = True, gate: dict[str, object] | None = None, **lineage: object) -> str:
        self.published += 1
        metrics = {"gate": gate} if gate else {}
        made = weights(self.published)
        return self.registry.publish(made, ITEMS, make_current=promote, metrics=metrics, lineage=lineage).version

    def engage(self, version: str, rate: float, events: int, size: int = 50) -> None:
        """Outcomes come in, one second a batch, and are taken in."""
        for _ in range(0, events, size):
            self.batch(version, [int(self.rng.random() < rate) for _ in range(size)])
            self.seconds += 1
            self.step()

    def batch(self, version: str, ranks: Sequence[int]) -> None:
        first, self.offset = self.offset, self.offset + len(ranks)
        outcomes = [(first + n, rank) for n, rank in enumerate(ranks)]
        span = (first, self.offset)
        batch = engagement_batch((version, "gru"), 0, 1, span, len(ranks), outcomes, self.now_ms(), {})
        self.broker.append(TOPIC, version.encode(), encode_engagement(batch))

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            self.retrainer.step()

    def kinds(self) -> list[str]:
        """Of the journal's notes, oldest first."""
        return [note.kind for note in reversed(self.registry.notes())]

    def details(self, kind: str) -> list[dict[str, object]]:
        return [dict(note.details) for note in reversed(self.registry.notes()) if note.kind == kind]

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.get_sample_value(name, labels)
