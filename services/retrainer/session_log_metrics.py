"""What the session logger tells Prometheus."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from shared.core.partition_gauge import PartitionGauge
from shared.core.session_log_port import LogSummary, Upkeep

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 60)


class SessionLogMetrics:
    """The SessionLogHooks port; a registry of its own keeps tests apart."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        r = registry
        self.events = Counter(
            "driftwood_session_log_events_total", "Records read for the log, by outcome", ["outcome"], registry=r
        )
        self.write = Histogram(
            "driftwood_session_log_write_seconds", "Time to write one file", buckets=_SECONDS, registry=r
        )
        self.behind = Gauge("driftwood_session_log_lag_records", "Records not read yet", ["partition"], registry=r)
        self.files = Gauge("driftwood_session_log_files", "Files of the log", registry=r)
        self.bytes = Gauge("driftwood_session_log_bytes", "Size of the log's files", registry=r)
        self.damaged = Gauge("driftwood_session_log_damaged_files", "Damaged files set aside", registry=r)
        self.removed = Counter(
            "driftwood_session_log_removed_files_total", "Files removed, by reason", ["why"], registry=r
        )
        self.forgotten = Counter(
            "driftwood_session_log_forgotten_events_total", "Events of forgotten users taken out of files", registry=r
        )
        self._lags = PartitionGauge(self.behind)

    def logged(self, outcome: str, count: int) -> None:
        """See SessionLogHooks."""
        self.events.labels(outcome).inc(count)

    def flushed(self, seconds: float) -> None:
        """See SessionLogHooks."""
        self.write.observe(seconds)

    def lag(self, records: Mapping[int, int]) -> None:
        """See SessionLogHooks."""
        self._lags.show(records)

    def upkept(self, done: Upkeep, summary: LogSummary) -> None:
        """See SessionLogHooks."""
        self.removed.labels("compacted").inc(done.compacted)
        self.removed.labels("expired").inc(done.expired)
        self.files.set(summary.files)
        self.bytes.set(summary.bytes)
        self.damaged.set(summary.damaged)

    def forgot(self, events: int) -> None:
        """See SessionLogHooks."""
        self.forgotten.inc(events)
