"""A gauge by partition that tells of the partitions owned, and of no others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class LabelledGauge(Protocol):
    """Of a Gauge of prometheus-client with the one label ``partition``."""

    def labels(self, *values: str) -> Any:
        """The child with this label; it has ``set``."""

    def remove(self, *values: str) -> None:
        """Show that child no more."""


class PartitionGauge:
    """Another member of the group tells of the partitions that went to it: a stale value would stay beside theirs."""

    def __init__(self, gauge: LabelledGauge) -> None:
        self._gauge = gauge
        self._shown: set[str] = set()

    def show(self, values: Mapping[int, float]) -> None:
        """partition -> value of all that are owned."""
        owned = {str(partition): value for partition, value in values.items()}
        for partition in self._shown - owned.keys():
            self._gauge.remove(partition)
        self._shown = set(owned)
        for partition, value in owned.items():
            self._gauge.labels(partition).set(value)
