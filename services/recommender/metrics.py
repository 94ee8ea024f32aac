"""What the recommender tells Prometheus."""

from __future__ import annotations

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

_LATENCY = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.007, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_STAGES = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1)
_FRESHNESS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.5, 1, 2, 5, 10, 60, 600)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class RecommenderMetrics:
    """All metrics of the recommender; a registry of its own keeps tests apart."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        r = self.registry = registry
        self.requests = Counter("driftwood_http_requests_total", "Answers", ["route", "status"], registry=r)
        self.latency = Histogram(
            "driftwood_http_request_seconds", "Time to answer", ["route"], buckets=_LATENCY, registry=r
        )
        self.rankings = Counter(
            "driftwood_rankings_total",
            "Rankings given, by way (http, topic) and strategy",
            ["way", "strategy"],
            registry=r,
        )
        self.cache = Counter(
            "driftwood_ranking_cache_total", "Rankings by model, found in memory (hit) or computed (miss)", ["outcome"],
            registry=r,
        )  # fmt: skip
        self.cached_users = Gauge("driftwood_ranking_cache_users", "Users whose ranking is in memory", registry=r)
        self.batch = Histogram("driftwood_rank_batch_requests", "Requests ranked together", buckets=_SIZES, registry=r)
        self.stage = Histogram(
            "driftwood_rank_stage_seconds",
            "Time of a batch's stages: read (Redis), rebuild (hidden states made), score",
            ["stage"],
            buckets=_STAGES,
            registry=r,
        )
        self.widened = Counter(
            "driftwood_rank_margin_widened_total", "Rankings whose first candidates were too few to be sure", registry=r
        )
        self.rebuilt = Counter(
            "driftwood_states_rebuilt_total", "States rebuilt from recent items for another model", registry=r
        )
        self.damaged = Counter("driftwood_damaged_states_total", "Stored states that could not be read", registry=r)
        self.new_items = Gauge(
            "driftwood_new_items_ranked", "Items that came after training and are ranked by the model", registry=r
        )
        self.popularity_bias = Gauge(
            "driftwood_popularity_bias_max",
            "Largest bias of an item by what is popular now",
            registry=r,
        )
        self.refined_items = Gauge(
            "driftwood_refined_items", "Items of the model whose rows follow those who choose them now", registry=r
        )
        self.popularity_seconds = Histogram(
            "driftwood_popularity_seconds",
            "Time to make the corrections by what is popular now and who chooses it",
            buckets=_STAGES,
            registry=r,
        )
        self.refused = Counter(
            "driftwood_rank_refused_total", "Requests not ranked, by the system at fault", ["why"], registry=r
        )
        self.rejected = Counter(
            "driftwood_http_rejected_total",
            "Requests and connections turned away, by reason (no_key, wrong_key, scope, rate, busy, body_size,"
            " body_time, body_gone, header_size, header_time, connections)",
            ["reason"],
            registry=r,
        )
        self.api_keys = Gauge("driftwood_http_api_keys", "API keys that are accepted", registry=r)
        self.key_file = Counter(
            "driftwood_http_api_key_file_reads_total", "Readings of HTTP_API_KEYS_FILE, by outcome (ok, damaged)",
            ["outcome"], registry=r,
        )  # fmt: skip
        self.accepted = Counter("driftwood_interactions_accepted_total", "Interactions taken over HTTP", registry=r)
        self.model = Gauge("driftwood_model_info", "1 for the model in use", ["service", "version"], registry=r)
        self.emitted = Counter(
            "driftwood_emitted_total", "Records acknowledged by the recommendations topic", ["strategy"], registry=r
        )
        self.emission_users = Histogram(
            "driftwood_emission_batch_users", "Users in one round of emission",
            buckets=(1, 4, 16, 64, 256, 1024, 4096, 16384), registry=r,
        )  # fmt: skip
        self.emission_freshness = Histogram(
            "driftwood_emission_freshness_seconds",
            "From a state in Redis to its ranking acknowledged by Kafka",
            buckets=_FRESHNESS,
            registry=r,
        )
        self.emission_behind = Gauge(
            "driftwood_emission_behind_seconds", "Age of the oldest state change in the last round", registry=r
        )
        self.emission_failures = Counter(
            "driftwood_emission_failures_total", "Rounds of emission that are tried again", registry=r
        )
        self._stream_lag = Gauge(
            "driftwood_stream_lag_records",
            "Interactions that the consumers' group has not committed yet, of all partitions together, as the broker"
            " tells; not told while the broker does not, nor without the console (CONSOLE=false)",
            ["group"],
            registry=r,
        )
        for why in ("overload", "deadline", "unavailable"):  # a rate needs a value from before the first event
            self.refused.labels(why)

    def stream_lag(self, group: str, records: int | None) -> None:
        """How far the group is behind; None: not known, and no old number stands for it."""
        if records is None:
            self._stream_lag.clear()
        else:
            self._stream_lag.labels(group).set(records)

    def given(self) -> dict[str, float]:
        """Rankings given so far, by way."""
        totals: dict[str, float] = {}
        for metric in self.rankings.collect():
            for sample in metric.samples:
                if sample.name.endswith("_total"):
                    totals[sample.labels["way"]] = totals.get(sample.labels["way"], 0.0) + sample.value
        return totals
