"""A batch's events into the store: read the states, advance them, write them, a part of the users at a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from services.consumer.advance import Advanced, Moment, Placed, Wanted, advance_states
from services.consumer.folding import Choice, redelivered_choices
from services.consumer.metrics import ConsumerMetrics
from shared.core.errors import StateDamaged, Unavailable
from shared.core.ports import StateStore, StateWrite
from shared.core.state import UserState, decode_state, encode_state, token_of
from shared.model.inference import InferenceModel

log = logging.getLogger(__name__)

PART_USERS = 1024
"""While the states of so many users are written, those of the next are read and advanced."""

_WRITE_ATTEMPTS = 50
"""A write is refused only when another's took place, so a few attempts are enough; this many mean a broken store."""


@dataclass(slots=True)
class Stored:
    """What a batch's events came to, once the states are in Redis.

    touched: partition -> users of the batch, redelivered events included: a crash may have come between a state and
    the message that tells of it, so those are told of again.
    """

    touched: dict[int, dict[str, None]] = field(default_factory=dict)
    warm: list[Placed] = field(default_factory=list)
    cold: list[Placed] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)
    repeated: list[Placed] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)

    def in_order(self) -> Stored:
        """By offset, whichever users came first."""
        self.moments.sort(key=lambda moment: moment.fresh.event.offset)
        self.choices.sort(key=lambda choice: choice.event.offset)
        return self


class _Advanced(NamedTuple):
    """A part of a batch on its way to the store."""

    events: list[Placed]
    outcome: Advanced
    choices: list[Choice]
    refused: Future[set[str]]


class Applier:
    """Applies events to the states in the store. Not for use by several threads at once."""

    def __init__(
        self, store: StateStore, recent_limit: int, metrics: ConsumerMetrics, fold_in: bool, part_users: int
    ) -> None:
        self._store = store
        self._recent_limit = recent_limit
        self._metrics = metrics
        self._fold_in = fold_in
        self._part_users = part_users
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._stages = {s: metrics.stage.labels(s) for s in ("read", "advance", "write")}

    def apply(self, events: Sequence[Placed], model: InferenceModel | None, wanted: Wanted, server_id: str) -> Stored:
        """Advance and store. Raises Unavailable, and nothing is on its way to the store any more."""
        stored = Stored()
        for event in events:
            stored.touched.setdefault(event.partition, {})[event.user_id] = None
        pending = list(events)
        for _ in range(_WRITE_ATTEMPTS):
            if not pending:
                return stored.in_order()
            refused: list[Placed] = []
            writing: list[_Advanced] = []
            try:
                parts = list(_parts(pending, self._part_users))
                for part in parts:
                    writing.append(self._advance(part, model, wanted, server_id, beside=len(parts) > 1))
                    if len(writing) > 1:
                        refused += self._keep(writing[0], stored)
                        del writing[0]
                for last in writing:
                    refused += self._keep(last, stored)
            finally:
                wait([part.refused for part in writing])
            pending = refused
        raise Unavailable(f"the state store refused {len(pending)} writes {_WRITE_ATTEMPTS} times in a row")

    def _advance(
        self, events: list[Placed], model: InferenceModel | None, wanted: Wanted, server_id: str, *, beside: bool
    ) -> _Advanced:
        """Read the users' states, advance them, and write them; beside: in the writer's thread."""
        started = time.perf_counter()
        states = self._read(list(dict.fromkeys(event.user_id for event in events)))
        started = self._lap("read", started)
        again = redelivered_choices(states, events, model) if self._fold_in and model is not None else []
        outcome = advance_states(states, events, model, self._recent_limit, wanted)
        self._lap("advance", started)
        if beside:
            return _Advanced(events, outcome, again, self._writer.submit(self._write, states, outcome, server_id))
        refused: Future[set[str]] = Future()
        refused.set_result(self._write(states, outcome, server_id))
        return _Advanced(events, outcome, again, refused)

    def _read(self, users: Sequence[str]) -> dict[str, UserState]:
        states: dict[str, UserState] = {}
        for user, value in zip(users, self._store.read(users), strict=True):
            try:
                states[user] = decode_state(value)
            except StateDamaged as error:
                self._metrics.damaged.inc()
                log.error("the stored state cannot be read and is set aside: %s", error, extra={"user_id": user})
                self._store.quarantine(user, value or b"")
                states[user] = UserState(token=token_of(value))
        return states

    def _write(self, states: Mapping[str, UserState], outcome: Advanced, server_id: str) -> set[str]:
        """Store the changed states; returns the users whose write was refused."""
        started = time.perf_counter()
        writes = [StateWrite(user, states[user].token, encode_state(states[user])) for user in outcome.changed]
        done = self._store.write(writes, server_id)
        refused = {write.key for write, stored in zip(writes, done, strict=True) if not stored}
        self._metrics.conflicts.inc(len(refused))
        self._lap("write", started)
        return refused

    def _keep(self, part: _Advanced, stored: Stored) -> list[Placed]:
        """Take and count what is stored now; returns the events of refused users, to be done again."""
        outcome, refused = part.outcome, part.refused.result()

        def kept(events: list[Placed]) -> list[Placed]:
            return [event for event in events if event.user_id not in refused] if refused else events

        warm, cold, repeated = kept(outcome.warm), kept(outcome.cold), kept(outcome.repeated)
        stored.warm += warm
        stored.cold += cold
        stored.repeated += repeated
        stored.moments += [moment for moment in outcome.moments if moment.fresh.event.user_id not in refused]
        events = self._metrics.events
        events.labels("applied").inc(len(warm) + len(cold))
        events.labels("dismissed").inc(len(kept(outcome.dismissed)))
        events.labels("redelivered").inc(outcome.redelivered)
        events.labels("repeated").inc(len(repeated))
        self._metrics.rebuilt.inc(outcome.rebuilt)
        stored.choices += [choice for choice in part.choices if choice.event.user_id not in refused]
        return [event for event in part.events if event.user_id in refused] if refused else []

    def _lap(self, stage: str, started: float) -> float:
        now = time.perf_counter()
        self._stages[stage].observe(now - started)
        return now


def _parts(events: Sequence[Placed], users: int) -> Iterator[list[Placed]]:
    """The events, divided by their users, so many in a part; in each the events keep their order."""
    by_user: dict[str, list[Placed]] = {}
    for event in events:
        by_user.setdefault(event.user_id, []).append(event)
    if len(by_user) <= users:
        yield list(events)
        return
    each = iter(by_user.values())
    while part := list(islice(each, users)):
        yield [event for own in part for event in own]
