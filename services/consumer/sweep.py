"""After a change of model: the states that nobody has met yet are rebuilt in the background, and ranked anew.

A user who acts or asks is served by the new model at once. All others still have a state of the old one, and their
ranking on the topic is the old one's. The sweep walks over all states, rebuilds those of users whose partition we own,
and tells the recommender. It begins a while after the change, when the recommender has the new model too, and goes on
at a bounded rate. Writes are compare-and-set: where the stream is faster, its write stands.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from services.consumer.metrics import ConsumerMetrics
from services.consumer.partitions import Partition
from shared.core.errors import DriftwoodError, StateDamaged
from shared.core.ports import Publisher, StateStore, StateWrite
from shared.core.ranking import StateUpdate, encode_update
from shared.core.state import UserState, decode_state, encode_state
from shared.model.inference import InferenceModel

log = logging.getLogger(__name__)

_TURN_S = 0.5
_SCAN_USERS = 500
"""Asked for at once: less than a millisecond of Redis' time."""

_REBUILD_USERS = 64
"""Rebuilt at once: 10 ms for 32 recent items each at width 128, in which the stream waits now and then."""

_LOOK_FACTOR = 20
"""States that need nothing are passed over so many times faster than others are rebuilt."""

_FLUSH_S = 30.0

Stale = tuple[str, UserState, int]
"""(user id, state, partition that we own)"""


class Sweep:
    """A thread of the consumer. owned: the partitions of now; publisher: makes one, for a pass that has to tell."""

    def __init__(
        self,
        store: StateStore,
        publisher: Callable[[], Publisher],
        updates_topic: str,
        model: Callable[[], InferenceModel | None],
        owned: Callable[[], Mapping[int, Partition]],
        delay_s: float,
        users_per_s: float,
        metrics: ConsumerMetrics,
    ) -> None:
        self._store = store
        self._make_publisher = publisher
        self._topic = updates_topic
        self._model = model
        self._owned = owned
        self._delay_s = delay_s
        self._users_per_s = users_per_s
        self._metrics = metrics
        self._publisher: Publisher | None = None
        self._last: InferenceModel | None = None
        self._seen: frozenset[int] = frozenset()
        self._due = 0.0
        self._done: frozenset[int] = frozenset()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sweep", daemon=True)

    def start(self) -> None:
        """Begin to watch for a new model, or new partitions."""
        self._thread.start()

    def stop(self) -> None:
        """Sweep no more; a later start begins anew."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def _run(self) -> None:
        while not self._stop.wait(_TURN_S):
            try:
                self.turn()
            except DriftwoodError as error:
                log.warning("the sweep over old states begins again: %s", error)
                self._stop.wait(5.0)
            finally:
                self._give_up_publisher()

    def turn(self) -> bool:
        """Sweep if there is something to sweep and its time has come; whether a pass went to its end.

        Raises Unavailable, and then the next pass begins from the start.
        """
        model, partitions = self._model(), frozenset(self._owned())
        if model is None or not partitions:
            return False
        if model is not self._last:  # back to a former model too: the one in between made states of its own
            self._last, self._done = model, frozenset()
            self._seen = frozenset()
        if partitions != self._seen:
            self._seen, self._due = partitions, time.monotonic() + self._delay_s
        if partitions <= self._done or time.monotonic() < self._due or not self._pass(model, partitions):
            return False
        self._done = partitions
        return True

    def _pass(self, model: InferenceModel, partitions: frozenset[int]) -> bool:
        """Once over all users; False where something changed on the way, so that it must begin anew."""
        total = self._store.count_users()
        began, cursor, looked, rebuilt = time.monotonic(), 0, 0, 0
        while True:
            cursor, users = self._store.scan(cursor, _SCAN_USERS)
            looked += len(users)
            rebuilt += self._rebuild_stale(users, model, partitions)
            self._metrics.sweep_left.set(max(0, total - looked) if cursor else 0)
            self._stop.wait(len(users) / (_LOOK_FACTOR * self._users_per_s))
            if self._stop.is_set() or self._model() is not model or not partitions <= set(self._owned()):
                return False
            if not cursor:
                break
        took = round(time.monotonic() - began, 1)
        log.info("states swept", extra={"model_version": model.version, "rebuilt": rebuilt, "seconds": took})
        return True

    def _rebuild_stale(self, users: Sequence[str], model: InferenceModel, partitions: frozenset[int]) -> int:
        stale: list[Stale] = []
        for user, value in zip(users, self._store.read(users), strict=True):
            with contextlib.suppress(StateDamaged):  # the stream sets it aside when it meets it
                state = decode_state(value)
                if state.events and state.fingerprint != model.fingerprint:
                    stale += [(user, state, number) for number in sorted(partitions & set(state.applied))[:1]]
        for at in range(0, len(stale), _REBUILD_USERS):
            began = time.monotonic()
            part = stale[at : at + _REBUILD_USERS]
            self._rebuild(part, model)
            pause = len(part) / self._users_per_s - (time.monotonic() - began)
            if self._stop.wait(max(0.0, pause)) or self._model() is not model:
                return at + len(part)
        return len(stale)

    def _rebuild(self, stale: Sequence[Stale], model: InferenceModel) -> None:
        """Tell, then write: after a crash in between, the states are still old and are told of again.

        What is told is ranked anew whatever the state is; and the recommender waits longer than the write takes.
        """
        hidden = model.advance(model.start(len(stale)), [model.known(state.recent_items()) for _, state, _ in stale])
        self._tell(stale)
        writes = []
        for (user, state, _), row in zip(stale, hidden, strict=True):
            state.hidden, state.fingerprint = row.tobytes(), model.fingerprint
            writes.append(StateWrite(user, state.token, encode_state(state)))
        done = self._store.write(writes, keep_ttl=True)
        self._metrics.swept.inc(sum(done))

    def _tell(self, stale: Sequence[Stale]) -> None:
        if self._publisher is None:
            self._publisher = self._make_publisher()
        by_partition: dict[int, list[str]] = {}
        for user, _, number in stale:
            by_partition.setdefault(number, []).append(user)
        for number, users in by_partition.items():
            # Without a time: these are not fresh, and how fresh rankings are is measured.
            self._publisher.send(self._topic, str(number).encode(), encode_update(StateUpdate(users)))
        self._publisher.flush(_FLUSH_S)

    def _give_up_publisher(self) -> None:
        publisher, self._publisher = self._publisher, None
        if publisher is not None:
            with contextlib.suppress(DriftwoodError):
                publisher.close()
