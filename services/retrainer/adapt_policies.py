"""When to train: never, every fixed span, when engagement drifts."""

from __future__ import annotations

from typing import Protocol

from services.retrainer.adapt_stream import Ints
from shared.core.drift import DriftMonitor, DriftRules
from shared.core.engagement import engagement_batch

HOUR_MS = 3_600_000


class Policy(Protocol):
    """Asked after each slice of the log."""

    def observe(self, now: int, ranks: Ints) -> bool:
        """Whether to train now. now: ms, the end of the slice; ranks (T,): of its tested events, 0 for a miss."""

    def trained(self, now: int) -> None:
        """A new model is in service."""


class Never:
    """The first model serves for ever."""

    def observe(self, now: int, ranks: Ints) -> bool:
        """No."""
        return False

    def trained(self, now: int) -> None:
        """Does not happen."""


class Every:
    """At every multiple of a span since the beginning. Once an hour is the oracle of the comparison: it knows best, as
    it always knows the newest, and costs most."""

    def __init__(self, span_ms: int, begin: int) -> None:
        self._span_ms, self._begin = span_ms, begin
        self._done = 0

    def observe(self, now: int, ranks: Ints) -> bool:
        """Once in each span."""
        return (now - self._begin) // self._span_ms > self._done

    def trained(self, now: int) -> None:
        """This span's is done."""
        self._done = (now - self._begin) // self._span_ms


class OnDrift:
    """When the services' own monitor raises an alarm; it is fed what the consumer would have published."""

    def __init__(self, rules: DriftRules) -> None:
        self.monitor = DriftMonitor(rules)
        self._version = 1
        self._offset = 0
        self.monitor.champion = str(self._version)

    def observe(self, now: int, ranks: Ints) -> bool:
        """One engagement batch of all tested events of the slice."""
        if not len(ranks):
            return False
        first, self._offset = self._offset, self._offset + len(ranks)
        outcomes = list(zip(range(first, self._offset), ranks.tolist(), strict=True))
        source, covered = (str(self._version), "gru"), (first, self._offset)
        batch = engagement_batch(source, 0, 0, covered, len(ranks), outcomes, now, {})
        return self.monitor.take(batch, now)[1] is not None

    def trained(self, now: int) -> None:
        """Outcomes are of the next version from now on."""
        self._version += 1
        self.monitor.champion = str(self._version)
