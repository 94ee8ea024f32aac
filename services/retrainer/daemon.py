"""The retrainer that decides: engagement in, alarms, trainings, promotions under observation; one loop, in turns.

Several may run; the one that holds the lease decides, the others wait. What it knows is one value beside the lease:

    1. engagement is read into the memory
    2. the memory is stored, if the lease is still ours
    3. the offsets are committed; what the memory says is to be done is done

so that any step may be the last before a crash: what was read is read again and found to be known, and what was to be
done is still to be done. One way out of every trouble: drop everything, and begin again from what is stored.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from services.retrainer.drift_watch import DriftWatch, EngagementReader
from services.retrainer.memory import Memory
from services.retrainer.metrics import RetrainerMetrics
from services.retrainer.retention import Retention
from services.retrainer.rollback import Promotions
from services.retrainer.schedule import Schedule
from shared.core.drift import DriftRules
from shared.core.errors import DriftwoodError, ModelDamaged, StateDamaged
from shared.core.lease_port import Lease

log = logging.getLogger(__name__)

_STAND_BY_S = 1.0
"""How often a retrainer that waits asks for the lease."""
_BACKOFF_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Retrainer:
    """``run`` belongs to a thread that lives as long as the process; ``stop`` to any.

    open_reader: joins the engagement topic's group; look_s: how often the registry is asked for the version in service;
    store_s: between two writes of the memory, where nothing urgent happened.
    """

    def __init__(
        self,
        lease: Lease,
        open_reader: Callable[[], EngagementReader],
        promotions: Promotions,
        schedule: Schedule,
        retention: Retention,
        rules: DriftRules,
        metrics: RetrainerMetrics,
        now_ms: Callable[[], int],
        look_s: float = 1.0,
        poll_s: float = 0.2,
        store_s: float = 1.0,
    ) -> None:
        self._lease, self._open_reader, self._promotions, self._schedule = lease, open_reader, promotions, schedule
        self._retention = retention
        self._rules, self._metrics, self._now_ms = rules, metrics, now_ms
        self._look_s, self._poll_s, self._store_s = look_s, poll_s, store_s
        self._stop = threading.Event()
        self._memory: Memory | None = None
        self._watch: DriftWatch | None = None
        self._dirty = False
        self._looked_at = self._stored_at = float("-inf")
        self._failures = 0
        self._pointer_problem: str | None = None
        self.turned_at = time.monotonic()
        """When the loop last came round, by time.monotonic()."""
        self.problem: str | None = "starting"
        """What keeps it from deciding, None while it decides or waits for the lease."""

    def stop(self) -> None:
        """Return from ``run`` soon. Safe to call from a signal handler."""
        self._stop.set()

    def run(self) -> None:
        """Until ``stop``. What waiting can heal is waited out."""
        while not self._stop.is_set():
            self.step()
        self._finish()

    def describe(self) -> dict[str, object]:
        """For /readyz."""
        memory = self._memory
        if memory is None:
            return {"decides": False}
        alarm, due, watch = memory.monitor.last_alarm, memory.due, memory.watch  # the loop goes on meanwhile
        return {
            "decides": True,
            "champion": memory.champion,
            "last_alarm": alarm.at if alarm else None,
            "due": due.reason if due else None,
            "training": self._schedule.running,
            "on_trial": watch.version if watch else None,
        }

    def step(self) -> None:
        """One turn of the loop."""
        self.turned_at = time.monotonic()
        try:
            if self._lease.hold():
                self._turn()
            else:
                self._stand_by()
        except DriftwoodError as error:
            self._fail(error)
            return
        self._failures, self.problem = 0, self._pointer_problem

    def _turn(self) -> None:
        memory, watch = self._take_over()
        self._dirty |= watch.poll(memory, self._poll_s)
        urgent = self._promotions.judge(memory)
        if urgent:
            self._looked_at = float("-inf")  # stored first, carried out in the next turn
        elif time.monotonic() - self._looked_at >= self._look_s:
            self._looked_at = time.monotonic()
            urgent |= self._look(memory)
        urgent |= self._schedule.look(memory)
        if self._looked_at > float("-inf"):
            self._metrics.decides.set(1)  # not before what the others take for the truth is known
        if urgent or (self._dirty and time.monotonic() - self._stored_at >= self._store_s):
            if not self._store(memory):
                return
            watch.commit()
        self._schedule.act(memory)
        self._retention.tidy(memory, self._schedule.running)

    def _look(self, memory: Memory) -> bool:
        """At the version in service; whether the memory changed. A pointer that cannot be read is mended by the next
        publication, so all else goes on."""
        try:
            changed, self._pointer_problem = self._promotions.look(memory), None
        except ModelDamaged as error:
            changed, self._pointer_problem = False, str(error)
            self._metrics.in_service(memory.champion)
        self._metrics.on_trial.set(memory.watch is not None)
        self._metrics.rate.clear()
        if memory.champion is not None:
            self._metrics.rate.labels(memory.champion).set(memory.monitor.track(memory.champion).window().rate)
        return changed

    def _store(self, memory: Memory) -> bool:
        """Whether the memory is stored; if not, the lease is another's, and so is everything else."""
        if not self._lease.write(memory.encode()):
            self._stand_by()
            return False
        self._dirty, self._stored_at = False, time.monotonic()
        return True

    def _take_over(self) -> tuple[Memory, DriftWatch]:
        if self._memory is None:
            self._memory = self._read_memory()
            self._looked_at = float("-inf")
            log.info("this retrainer decides", extra={"champion": self._memory.champion})
        if self._watch is None:
            self._watch = DriftWatch(self._open_reader(), self._metrics, self._now_ms)
        return self._memory, self._watch

    def _read_memory(self) -> Memory:
        try:
            return Memory(self._rules, self._lease.read())
        except StateDamaged as error:
            log.error("what the retrainer remembered is lost: %s", error)
            return Memory(self._rules)

    def _stand_by(self) -> None:
        """Another decides: what we began is not ours any more."""
        if self._memory is not None:
            log.warning("the lease was lost: another retrainer decides")
        self._schedule.stop()
        self._metrics.stands_by()
        self._drop()
        self._stop.wait(min(self._look_s, _STAND_BY_S))

    def _drop(self) -> None:
        self._memory, watch, self._watch = None, self._watch, None
        self._dirty = False
        self._metrics.undecided()
        if watch is not None:
            watch.close()

    def _fail(self, error: DriftwoodError) -> None:
        """Say what is wrong, drop what is in memory, and wait. A training that runs goes on."""
        self.problem = str(error)
        pause = _BACKOFF_S[min(self._failures, len(_BACKOFF_S) - 1)]
        self._failures += 1
        log.error("retrainer: %s; trying again in %.1f s", error, pause, extra={"attempt": self._failures})
        self._memory = None
        self._dirty = False
        try:
            self._drop()
        except DriftwoodError as closing:
            log.warning("the engagement reader did not close: %s", closing)
        self._stop.wait(pause)

    def _finish(self) -> None:
        """A training that runs is ended; it is still due at the next start, and goes on from its checkpoint."""
        try:
            if self._memory is not None and self._watch is not None and self._store(self._memory):
                self._watch.commit()
            self._schedule.stop()
            self._drop()
            self._lease.release()
        except DriftwoodError as error:
            log.warning("stopping without a last word, it is read again: %s", error)
        finally:
            self._schedule.stop()
