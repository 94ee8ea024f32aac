"""What the consumer tells Prometheus."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from shared.core.engagement import SERVED
from shared.core.events import Interaction
from shared.core.partition_gauge import PartitionGauge
from shared.core.ports import StoreMemory

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 60, 600)
_STAGES = (0.0001, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5)
_SIZES = (1, 4, 16, 64, 256, 1024, 4096, 16384)
_OUTCOMES = ("applied", "dismissed", "ignored", "dead_letter", "redelivered", "repeated")
_REWINDS = ("Unavailable", "TopicMissing", "TopicRecreated", "redis", "revoke")
_STORE = {
    "driftwood_redis_used_memory_bytes": "What Redis holds, as it counts it; of a cluster, its fullest server",
    "driftwood_redis_max_memory_bytes": "maxmemory of that server; without one, its machine's memory",
    "driftwood_redis_evicted_keys": "Keys that Redis threw away for want of room since its start; of a cluster, of all",
}
"""As the fields of StoreMemory."""


class ConsumerMetrics:
    """All metrics of the consumer; a registry of its own keeps tests apart."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        r = self.registry = registry
        self.events = Counter(
            "driftwood_consumer_events_total", "Interactions read, by what became of them", ["outcome"], registry=r
        )
        self.dead_letters = Counter(
            "driftwood_dead_letters_total",
            "Values sent to the dead-letter topic, by field at fault",
            ["field"],
            registry=r,
        )
        self.lag = Gauge("driftwood_consumer_lag_records", "Records not read yet", ["partition"], registry=r)
        self.partitions = Gauge("driftwood_consumer_partitions", "Partitions owned", registry=r)
        self.batch_events = Histogram(
            "driftwood_consumer_batch_events", "Events in a batch", buckets=_SIZES, registry=r
        )
        self.batch_users = Histogram("driftwood_consumer_batch_users", "Users in a batch", buckets=_SIZES, registry=r)
        self.stage = Histogram(
            "driftwood_consumer_stage_seconds", "Time of a batch's stages", ["stage"], buckets=_STAGES, registry=r
        )
        self.freshness = Histogram(
            "driftwood_freshness_seconds",
            "From the event's own time (event), or its arrival at the broker (arrival), to its state in Redis;"
            " up to 16 events of a batch, evenly",
            ["since"],
            buckets=_SECONDS,
            registry=r,
        )
        self.conflicts = Counter(
            "driftwood_consumer_write_conflicts_total", "State writes refused because another came first", registry=r
        )
        self.damaged = Counter("driftwood_damaged_states_total", "Stored states that could not be read", registry=r)
        self.rebuilt = Counter(
            "driftwood_states_rebuilt_total", "States rebuilt from recent items for another model", registry=r
        )
        self.swept = Counter(
            "driftwood_states_swept_total", "States rebuilt in the background after a change of model", registry=r
        )
        self.sweep_left = Gauge(
            "driftwood_sweep_users_left", "Users, of all consumers, that the sweep has yet to look at", registry=r
        )
        self.rewinds = Counter(
            "driftwood_consumer_rewinds_total",
            "Times that reading began again at the stored progress",
            ["why"],
            registry=r,
        )
        engaged = ["model_version", "strategy"]
        self.engagement_scored = Counter(
            "driftwood_engagement_scored_total", "Events scored against the ranking before them", engaged, registry=r
        )
        self.engagement_hits = Counter(
            "driftwood_engagement_hits_total", "Of these, chosen items in the first k", [*engaged, "k"], registry=r
        )
        self.engagement_reciprocal_rank = Counter(
            "driftwood_engagement_reciprocal_rank_total", "Sum of 1/rank, ranks up to 20", engaged, registry=r
        )
        self.engagement_rate = Gauge(
            "driftwood_engagement_sample_rate", "Share of the events that are scored, at present", registry=r
        )
        self.engagement_skipped = Counter(
            "driftwood_engagement_skipped_total",
            "Events not scored: left out of the sample, or of partitions that were read again before the report",
            ["why"],
            registry=r,
        )
        self.served = Counter(
            "driftwood_served_total",
            "What became of recommendations: impressions (shown), actions that name one (clicked), dismissals",
            ["what"],
            registry=r,
        )
        self.model = Gauge("driftwood_model_info", "1 for the model in use", ["service", "version"], registry=r)
        self.committed = Gauge(
            "driftwood_consumer_committed_timestamp_seconds",
            "Unix time of the last complete commit; before the first, of the start",
            registry=r,
        )
        self.committed.set_to_current_time()
        self._store_known = False
        self._store = [Gauge(name, what, registry=None) for name, what in _STORE.items()]
        self._lags = PartitionGauge(self.lag)
        self._begin_at_zero()

    def _begin_at_zero(self) -> None:
        """What was never counted is shown as 0: a rate needs a value from before the first event."""
        for outcome in _OUTCOMES:
            self.events.labels(outcome)
        for field in ("value", *Interaction.__struct_fields__):
            self.dead_letters.labels(field)
        for why in _REWINDS:
            self.rewinds.labels(why)
        for what in SERVED:
            self.served.labels(what)

    def lags(self, records: Mapping[int, int]) -> None:
        """Lag of the partitions owned, and of no others."""
        self._lags.show(records)

    def store_memory(self, memory: StoreMemory) -> None:
        """What the state store says of itself. Shown from the first time on: a 0 from before would have risen since."""
        for gauge, value in zip(self._store, memory, strict=True):
            gauge.set(value)
            if not self._store_known:
                self.registry.register(gauge)
        self._store_known = True
