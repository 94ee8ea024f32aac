"""What the retrainer tells Prometheus, beside its session log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from shared.core.engagement import EngagementBatch

_SECONDS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 3600)


class RetrainerMetrics:
    """A registry of its own keeps tests apart."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        r = registry
        self.decides = Gauge("driftwood_retrainer_decides", "1 for the one retrainer that decides", registry=r)
        self.alarms = Counter(
            "driftwood_drift_alarms_total", "Alarms; repeated: the level did not come back", ["kind"], registry=r
        )
        self.trainings = Counter(
            "driftwood_trainings_total",
            "Trainings ended, by reason (drift, age, cold) and outcome (promoted, kept back, nothing, failed)",
            ["reason", "outcome"],
            registry=r,
        )
        self.failures = Gauge(
            "driftwood_training_failures_in_a_row",
            "Trainings that broke since one that did not, of what is still to be trained; told by who decides",
            registry=r,
        )
        self.training = Gauge("driftwood_training_running", "1 while a training runs", registry=r)
        self.seconds = Histogram(
            "driftwood_training_seconds", "Length of a training, gate and all", buckets=_SECONDS, registry=r
        )
        self.gate = Counter("driftwood_gate_total", "Decisions of the gate", ["decision"], registry=r)
        self.gate_recall = Gauge(
            "driftwood_gate_recall20",
            "Recall@20 at the last gate: challenger, champion, popularity",
            ["of"],
            registry=r,
        )
        self.swaps = Counter("driftwood_model_swaps_total", "Changes of the version in service", ["why"], registry=r)
        self.model = Gauge("driftwood_model_info", "1 for the model in service", ["service", "version"], registry=r)
        self.versions = Gauge("driftwood_model_versions", "Versions in the registry, damaged ones left out", registry=r)
        self.champion = Gauge(
            "driftwood_champion_version", "Number of the version in service, told by who decides; 0: none", registry=r
        )
        self.age = Gauge("driftwood_model_age_seconds", "Since the model in service was trained", registry=r)
        self.max_age = Gauge("driftwood_model_max_age_seconds", "MODEL_MAX_AGE_S; 0: no limit", registry=r)
        self.on_trial = Gauge(
            "driftwood_promotion_on_trial", "1 while engagement may still take the last promotion back", registry=r
        )
        self.rate = Gauge(
            "driftwood_engagement_hit_rate",
            "Share of next actions among the first 20 of the ranking held, since the level last changed",
            ["version"],
            registry=r,
        )
        self.events = Counter(
            "driftwood_engagement_read_events_total", "Scored events read", ["version", "strategy"], registry=r
        )
        self.hits = Counter(
            "driftwood_engagement_read_hits_total", "Of those, hits at k", ["version", "strategy", "k"], registry=r
        )
        self.unreadable = Counter(
            "driftwood_engagement_unreadable_total", "Values of the engagement topic that are none", registry=r
        )
        self._begin_at_zero()

    def _begin_at_zero(self) -> None:
        """What was never counted is shown as 0: a rate needs a value from before the first event."""
        for kind in ("new", "repeated"):
            self.alarms.labels(kind)
        for reason in ("drift", "age", "cold"):
            for outcome in ("promoted", "kept back", "nothing", "failed"):
                self.trainings.labels(reason, outcome)
        for decision in ("promoted", "kept back"):
            self.gate.labels(decision)
        for why in ("gate", "outside", "rollback"):
            self.swaps.labels(why)

    def engaged(self, batch: EngagementBatch) -> None:
        """Count what is new."""
        labels = (batch.model_version or "none", batch.strategy)
        self.events.labels(*labels).inc(batch.count)
        for k, hits in batch.hits.items():
            self.hits.labels(*labels, k).inc(hits)

    def in_service(self, version: str | None) -> None:
        """The version, and no other."""
        self.model.clear()
        self.champion.set(int(version or 0))
        if version is not None:
            self.model.labels("retrainer", version).set(1)

    def undecided(self) -> None:
        """This retrainer does not decide, for now: what it looks up as soon as it does again is shown no more."""
        self.decides.set(0)
        self.in_service(None)
        self.age.set(0)
        self.on_trial.set(0)
        self.rate.clear()

    def stands_by(self) -> None:
        """Another decides: what it told last is shown no more. Counters stay."""
        self.undecided()
        self.gate_recall.clear()
        self.failures.set(0)
        self.versions.set(0)

    def judged(self, gate: Mapping[str, Any]) -> None:
        """The gate's decision and its numbers."""
        self.gate.labels(str(gate.get("decision", "unknown"))).inc()
        for who in ("challenger", "champion", "popularity"):
            found = gate.get(who)
            if isinstance(found, Mapping) and isinstance(found.get("recall20"), int | float):
                self.gate_recall.labels(who).set(found["recall20"])
