"""The version in service, watched: who put it there, and whether it stays.

A promotion, to a higher version by whoever, is judged by the engagement that follows (shared/core/rollback.py). One
that cannot even be read is taken back as well. Going back to a lower version is a person's decision: not judged.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from services.retrainer.journal import note_gate, note_service
from services.retrainer.memory import Memory, Watch
from services.retrainer.metrics import RetrainerMetrics
from shared.core.errors import ModelDamaged, NoSuchVersion
from shared.core.registry_port import ModelRegistry
from shared.core.rollback import judge_promotion

log = logging.getLogger(__name__)

DAMAGED_S = 10.0
"""A version that cannot be read so long is damaged for good: it may have been copied into place bit by bit."""


class Promotions:
    """Called from the one loop that decides; what it does can be done again after a crash at any point.

    events, p: the settings ROLLBACK_EVENTS and ROLLBACK_P; cooldown_s: no alarm so long after a rollback, doubled
    with each in a row.
    """

    def __init__(
        self,
        registry: ModelRegistry,
        metrics: RetrainerMetrics,
        now_ms: Callable[[], int],
        events: int,
        p: float,
        cooldown_s: float,
    ) -> None:
        self._registry, self._metrics, self._now_ms = registry, metrics, now_ms
        self._events, self._p, self._cooldown_s = events, p, cooldown_s
        self._damaged: tuple[str, int] | None = None  # version, and since when it could not be read
        self._whole: str | None = None  # a version that was read: that may take longer than the lease is ours

    def look(self, memory: Memory) -> bool:
        """One look at the registry; whether the memory changed. Raises ModelDamaged (the pointer), Unavailable."""
        current = self._registry.current()
        self._metrics.in_service(current)
        if memory.watch is not None and memory.watch.verdict is not None:
            self._take_back(memory, memory.watch, current)
            return True
        if current == memory.champion:
            return self._readable(memory)
        self._swapped(memory, current)
        return True

    def judge(self, memory: Memory) -> bool:
        """Whether the promotion under observation was decided on; to be stored, then carried out by ``look``."""
        watch = memory.watch
        if watch is None or watch.verdict is not None:
            return False
        bits = memory.monitor.track(watch.version).since(watch.from_bit)
        found = judge_promotion(bits, watch.before, self._events, self._p)
        if found.verdict == "wait" or (found.verdict == "keep" and not watch.readable):
            return False  # also what nobody has anything against is to be readable
        numbers = {"before": found.before.rate, "after": found.after.rate, "events": found.after.events, "p": found.p}
        if found.verdict == "keep":
            log.info("the promotion stays", extra={"model_version": watch.version, **numbers})
            memory.watch, memory.rollbacks = None, 0
        else:
            watch.verdict, watch.why = numbers, "engagement"
        return True

    def _swapped(self, memory: Memory, current: str | None) -> None:
        old = memory.champion
        memory.watch = memory.due = None  # what a training was due for is over
        if current is not None:
            gate, lineage = self._gate(current)
            if gate is not None:
                note_gate(self._registry, current, gate)
            won = gate is not None and gate.get("decision") == "promoted"
            why = "gate" if won and (old is None or lineage.get("replaces", old) == old) else "outside"
            if note_service(self._registry, "swap", {"version": current, "from": old, "why": why}):
                self._metrics.swaps.labels(why).inc()
                log.info("another version is in service", extra={"model_version": current, "from": old, "why": why})
        if current is not None and old is not None and int(current) > int(old):
            before = memory.monitor.track(old).recent(self._events)
            first = memory.monitor.track(current).total
            memory.watch = Watch(current, old, before.hits, before.events, first, self._now_ms())
        memory.champion = current
        self._damaged = None

    def _readable(self, memory: Memory) -> bool:
        """Whether the memory changed: a promotion whose files are damaged is to be taken back."""
        watch = memory.watch
        if watch is None or watch.readable:
            return False
        try:
            if self._whole != watch.version:
                self._registry.load(watch.version)
                self._whole = watch.version
        except (ModelDamaged, NoSuchVersion) as error:
            version, since = self._damaged or (watch.version, self._now_ms())
            self._damaged = version, since
            if self._now_ms() - since < 1000 * DAMAGED_S:
                return False
            log.error("the version in service is damaged: %s", error, extra={"model_version": watch.version})
            watch.verdict, watch.why = {}, str(error)
            return True
        watch.readable = True
        return True

    def _take_back(self, memory: Memory, watch: Watch, current: str | None) -> None:
        memory.watch = None
        if current == watch.version:
            try:
                self._registry.load(watch.back_to)
            except (ModelDamaged, NoSuchVersion) as error:
                log.error("no rollback: %s", error, extra={"model_version": watch.version})
                return
            self._registry.set_current(watch.back_to)
        elif current != watch.back_to:
            return  # somebody was faster: another version altogether is in service
        told = {"version": watch.version, "back_to": watch.back_to, "why": watch.why}
        if note_service(self._registry, "rollback", {**told, **(watch.verdict or {})}):
            self._metrics.swaps.labels("rollback").inc()
        log.warning("rolled back", extra={"model_version": watch.version, "back_to": watch.back_to, "why": watch.why})
        memory.champion, memory.due = watch.back_to, None
        pause_s = self._cooldown_s * 2 ** min(memory.rollbacks, 6)
        memory.rollbacks += 1
        memory.monitor.quiet(self._now_ms(), pause_s)
        self._metrics.in_service(watch.back_to)

    def _gate(self, version: str) -> tuple[Mapping[str, Any] | None, Mapping[str, Any]]:
        """(What the gate said of the version, None: it was not asked; where the version comes from)."""
        try:
            manifest = self._registry.manifest(version)
        except (ModelDamaged, NoSuchVersion):
            return None, {}
        gate = manifest.metrics.get("gate")
        return gate if isinstance(gate, Mapping) else None, manifest.lineage
