"""Old model versions go: all but the newest, the one in service, and whatever a rollback or a training may need."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

from services.retrainer.memory import Memory
from services.retrainer.metrics import RetrainerMetrics
from shared.core.errors import ModelDamaged, Unavailable
from shared.core.registry_port import Manifest, ModelRegistry, Note

log = logging.getLogger(__name__)

_NOTES_READ = 100
_EVERY_S = 60.0


class Retention:
    """keep: the setting MODEL_KEEP; 0 keeps all. Called from the one loop that decides.

    A retrainer that has lost its lease without noticing yet removes nothing that is needed either: what it goes by, but
    for its own memory, is read from the registry each time.
    """

    def __init__(
        self, registry: ModelRegistry, metrics: RetrainerMetrics, keep: int, every_s: float = _EVERY_S
    ) -> None:
        self._registry, self._metrics, self._keep, self._every_s = registry, metrics, keep, every_s
        self._due_at = float("-inf")

    def tidy(self, memory: Memory, training: bool) -> None:
        """Now and then, and not while a training runs: it may read any version. Never raises a DriftwoodError."""
        now = time.monotonic()
        if not self._keep or training or now < self._due_at:
            return
        self._due_at = now + self._every_s
        try:
            self._remove(memory)
        except (Unavailable, ModelDamaged) as error:
            log.warning("old model versions were not removed: %s", error)

    def _remove(self, memory: Memory) -> None:
        current = self._registry.current()
        versions = self._registry.versions()
        self._metrics.versions.set(len(versions))
        if len(versions) <= self._keep:
            return
        needed = {current} | _remembered(memory) | _in_service_lately(self._registry.notes(_NOTES_READ))
        needed |= _ancestors(versions, current)
        removed = [
            manifest.version
            for manifest in versions[: -self._keep]
            if manifest.version not in needed and self._registry.remove(manifest.version)
        ]
        if removed:
            self._metrics.versions.set(len(versions) - len(removed))
            log.info("old model versions removed", extra={"versions": ", ".join(removed)})


def _remembered(memory: Memory) -> set[str | None]:
    watch = memory.watch
    return {memory.champion, *((watch.version, watch.back_to) if watch is not None else ())}


def _in_service_lately(notes: Iterable[Note]) -> set[str | None]:
    """Both ends of the last change, whoever made it: what a rollback would go back to, where the memory was lost."""
    for note in notes:
        if note.kind in ("swap", "rollback"):
            names = (note.details.get(name) for name in ("version", "from", "back_to"))
            return {str(name) for name in names if name is not None}
    return set()


def _ancestors(versions: Iterable[Manifest], current: str | None) -> set[str | None]:
    """What the one in service was made from, and what it replaced."""
    for manifest in versions:
        if manifest.version == current:
            return {str(manifest.lineage.get(name)) for name in ("parent", "replaces")}
    return set()
