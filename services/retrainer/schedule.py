"""When to train: after an alarm, for the model's age, or because there is none; and what a training came to."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass

import msgspec

from services.retrainer.journal import note_alarm, note_gate
from services.retrainer.memory import Due, Memory
from services.retrainer.metrics import RetrainerMetrics
from services.retrainer.trainer import Outcome, Trainer
from shared.core.errors import ModelDamaged, NoSuchVersion, Unavailable
from shared.core.registry_port import ModelRegistry

log = logging.getLogger(__name__)

_FAILED_S = 30.0
"""Pause after a training that broke, doubled with each in a row."""
_FAILED_MOST_S = 3600.0


@dataclass(frozen=True, slots=True)
class TrainingRules:
    """The settings. max_age_s: 0: never for its age; cooldown_s: after a training, before the alarm repeats."""

    auto: bool = True
    max_age_s: float = 7 * 86400.0
    cooldown_s: float = 600.0
    cold_check_s: float = 5.0
    """How often the log is looked at while there is no model."""


class Schedule:
    """``look`` changes the memory, ``act`` does what the stored memory says.

    prepare: makes the session log ready for a training, in a thread of its own: the future is done when it is. enough:
    whether the log holds enough for a first model; asked only while there is none.
    """

    def __init__(
        self,
        registry: ModelRegistry,
        trainer: Trainer,
        prepare: Callable[[], Future[None]],
        enough: Callable[[], bool],
        rules: TrainingRules,
        metrics: RetrainerMetrics,
        now_ms: Callable[[], int],
    ) -> None:
        self._registry, self._trainer, self._prepare, self._enough = registry, trainer, prepare, enough
        self._prepared: Future[None] | None = None
        self._rules, self._metrics, self._now_ms = rules, metrics, now_ms
        self._cold_at = self._aged_at = float("-inf")
        self._trained_at: dict[str, int] = {}
        self._why = ""
        self._outcome: Outcome | None = None
        metrics.max_age.set(rules.max_age_s)

    @property
    def running(self) -> bool:
        """Whether a training runs."""
        return self._trainer.running

    def look(self, memory: Memory) -> bool:
        """Take in the end of a training and find reasons for another; whether the memory changed."""
        changed = False
        if memory.due is not None and memory.due.alarm is not None and not memory.due.noted:
            note_alarm(self._registry, msgspec.to_builtins(memory.due.alarm))
            memory.due.noted = changed = True
        # Told once: held until it is noted, or with the registry's disk full it would be forgotten, and trained anew.
        self._outcome = self._outcome or self._trainer.outcome()
        if self._outcome is not None:
            self._ended(memory, self._outcome)
            self._outcome = None
            changed = True
        if memory.due is None and self._rules.auto and not self._trainer.running:
            reason = self._reason(memory)
            if reason:
                memory.due = Due(reason, self._now_ms())
                changed = True
        if self._trainer.running:  # what it will bring is to be seen before the alarm repeats
            memory.monitor.quiet(self._now_ms(), self._rules.cooldown_s)
        if memory.due is None or not self._rules.auto:
            memory.failures = 0  # what broke is not tried again
        self._metrics.failures.set(memory.failures)
        self._metrics.training.set(self._trainer.running)
        self._tell_age(memory)
        return changed

    def act(self, memory: Memory) -> None:
        """Begin the training that is due, if its time has come."""
        due = memory.due
        if due is None or not self._rules.auto:
            self._prepared = None  # of a reason that is gone: for the next one the log is made ready anew
            return
        if self._trainer.running or self._now_ms() < memory.not_before:
            return
        if self._prepared is None:
            self._prepared = self._prepare()
        if not self._prepared.done():
            return
        prepared, self._prepared = self._prepared, None
        if (error := prepared.exception()) is not None:
            log.warning("no training yet, the session log is not ready: %s", error)
            return
        self._why = due.reason
        log.info("training because of: %s", self._why)
        self._trainer.start(due.alarm.since if due.alarm else 0)
        self._metrics.training.set(1)

    def stop(self) -> None:
        """End a training that runs; it stays due."""
        self._trainer.stop()
        self._outcome = self._prepared = None
        self._metrics.training.set(0)

    def _reason(self, memory: Memory) -> str | None:
        now = self._now_ms()
        if now < memory.not_before:
            return None
        if memory.champion is None:
            if time.monotonic() - self._cold_at < self._rules.cold_check_s:
                return None
            self._cold_at = time.monotonic()
            return "cold" if self._holds_enough() else None
        trained_at = max(self._born(memory.champion), memory.trained_at)
        if self._rules.max_age_s and trained_at and now - trained_at > 1000 * self._rules.max_age_s:
            return "age"
        return None

    def _tell_age(self, memory: Memory) -> None:
        """0 while there is no model, or where it does not say when it was trained."""
        born = self._born(memory.champion) if memory.champion is not None else 0
        self._metrics.age.set(max(0, self._now_ms() - born) / 1000 if born else 0)

    def _holds_enough(self) -> bool:
        try:
            return self._enough()
        except Unavailable as error:
            log.warning("whether there is enough for a first model is not known: %s", error)
            return False

    def _born(self, version: str) -> int:
        """When the version was trained: ms since the epoch; 0: it does not say."""
        if version not in self._trained_at:
            try:
                told = self._registry.manifest(version).lineage.get("trained_at")
            except (ModelDamaged, NoSuchVersion):
                told = None
            self._trained_at = {version: told if isinstance(told, int) else 0}
        return self._trained_at[version]

    def _ended(self, memory: Memory, outcome: Outcome) -> None:
        """Whatever it was due for: an alarm raised meanwhile is repeated if the level stays low."""
        result = outcome.result
        gate = result.get("gate")
        if isinstance(gate, Mapping):
            note_gate(self._registry, result.get("published"), gate)
        self._note_training(outcome)
        self._cold_at = time.monotonic()  # a first model is to be seen in service before another is wanted
        if isinstance(gate, Mapping):
            self._metrics.judged(gate)
        self._metrics.trainings.labels(self._why, outcome.word).inc()
        self._metrics.seconds.observe(outcome.seconds)
        now = self._now_ms()
        if outcome.problem:
            pause_s = min(_FAILED_S * 2**memory.failures, _FAILED_MOST_S)
            memory.failures += 1
            memory.not_before = now + round(1000 * pause_s)
            log.error("training failed: %s; again in %.0f s", outcome.problem, pause_s)
            return
        log.info("training ended", extra={"outcome": outcome.word, "version": result.get("published")})
        memory.failures, memory.trained_at, memory.due = 0, now, None
        if memory.champion is None and outcome.word != "promoted":
            memory.not_before = now + round(1000 * self._rules.cooldown_s)

    def _note_training(self, outcome: Outcome) -> None:
        result = outcome.result
        details = {
            "reason": self._why,
            "outcome": outcome.word,
            "version": result.get("published"),
            "seconds": round(outcome.seconds, 1),
        }
        extra = {"problem": outcome.problem} if outcome.problem else {"train_s": result.get("train_s")}
        self._registry.note("training", details | extra)
