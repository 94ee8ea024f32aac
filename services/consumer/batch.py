"""One batch: decode, read the states, advance them, write them, tell who changed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from services.consumer.advance import Advanced, Moment, Placed, Wanted, advance_states
from services.consumer.decoding import Decoded, decode_records
from services.consumer.engagement import Engagement
from services.consumer.folding import Choice, fold, fresh_choices, redelivered_choices
from services.consumer.metrics import ConsumerMetrics
from services.consumer.partitions import Partition
from services.consumer.spans import Lot, Span, repeated_places
from shared.core.errors import InvalidEvent, StateDamaged, Unavailable
from shared.core.events import EventRules
from shared.core.ports import Publisher, Record, StateStore, StateWrite
from shared.core.ranking import StateUpdate, encode_update
from shared.core.state import UserState, decode_state, encode_state, token_of
from shared.model.inference import InferenceModel

log = logging.getLogger(__name__)

_USERS_IN_MESSAGE = 2000
"""Users named in one state-updates message: at 256 bytes an id it still has half a megabyte."""

_PART_USERS = 1024
"""While the states of so many users are written, those of the next are read and advanced."""

_WRITE_ATTEMPTS = 50
"""A write is refused only when another's took place, so a few attempts are enough; this many mean a broken store."""

_FRESHNESS_SAMPLES = 16


@dataclass(frozen=True)
class Topics:
    """Names of the topics that the consumer writes to."""

    state_updates: str
    dlq: str


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


class BatchProcessor:
    """Applies polled records. Doing a batch twice has the effect of doing it once."""

    def __init__(
        self,
        store: StateStore,
        publisher: Publisher,
        model: Callable[[], InferenceModel | None],
        rules: EventRules,
        topics: Topics,
        recent_limit: int,
        metrics: ConsumerMetrics,
        engagement: Engagement,
        dismiss_s: int = 7 * 86400,
        clock: Callable[[], float] = time.time,
        fold_in: bool = True,
        part_users: int = _PART_USERS,
    ) -> None:
        self._store = store
        self._publisher = publisher
        self._model = model
        self._rules = rules
        self._topics = topics
        self._recent_limit = recent_limit
        self._metrics = metrics
        self.engagement = engagement
        self._clock = clock
        self._dismiss_s = dismiss_s
        self._fold_in = fold_in
        self._part_users = part_users
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._stages = {s: metrics.stage.labels(s) for s in ("decode", "read", "advance", "write", "publish")}

    def run(
        self, records: Mapping[int, Sequence[Record]], owned: Mapping[int, Partition], source_topic: str, server_id: str
    ) -> None:
        """Apply the records of one poll and move the partitions' offsets and trending counts.

        Records of partitions that are not owned any more are left to their new owner. Raises Unavailable, and then
        nothing in ``owned`` has moved: the same call can be made again.
        """
        started = time.perf_counter()
        mine = {number: batch for number, batch in records.items() if number in owned}
        decoded = decode_records(mine, owned, self._rules, int(self._clock() * 1000), self._dismiss_s)
        self._metrics.events.labels("ignored").inc(decoded.ignored)
        self._metrics.events.labels("dead_letter").inc(len(decoded.bad))
        started = self._lap("decode", started)
        model, offers = self._model(), self.engagement.offers.current
        wanted = self.engagement.wanted(len(decoded.events), model, self._fold_in)
        stored = self._apply(decoded.events, model, wanted, server_id, started)
        started = time.perf_counter()
        self._publish(stored.touched, decoded.bad, source_topic)
        self._lap("publish", started)
        spans = {n: Span(owned[n], n, owned[n].next_offset, batch[-1].offset + 1) for n, batch in mine.items()}
        for number, span in spans.items():
            owned[number].next_offset = span.end
        for event in decoded.events:
            if not event.dismissed_until:
                owned[event.partition].trending.add(event.item_id, event.ts)
        if self._fold_in and model is not None:
            choices = [*stored.choices, *fresh_choices(stored.moments)]
            fold(owned, mine, choices, stored.moments, model.fingerprint)
        self._score(Lot(spans, model, offers), stored, decoded)
        self._observe(mine, decoded.events)

    def _lap(self, stage: str, started: float) -> float:
        now = time.perf_counter()
        self._stages[stage].observe(now - started)
        return now

    def _score(self, lot: Lot, stored: Stored, decoded: Decoded) -> None:
        """Hand over what tells of engagement; it is scored elsewhere."""
        lot.see(stored.warm, stored.cold)
        without = repeated_places(stored.repeated)
        for kind, places in decoded.served.items():
            if places:
                lot.serve(kind, places, without)
        lot.moments = [moment for moment in stored.moments if moment.sampled]
        self.engagement.add(lot)

    def _apply(
        self,
        events: Sequence[Placed],
        model: InferenceModel | None,
        wanted: Wanted,
        server_id: str,
        started: float,
    ) -> Stored:
        """Advance and store. Raises Unavailable."""
        stored = Stored()
        for event in events:
            stored.touched.setdefault(event.partition, {})[event.user_id] = None
        pending = list(events)
        for _ in range(_WRITE_ATTEMPTS):
            if not pending:
                return stored.in_order()
            refused: list[Placed] = []
            writing: _Advanced | None = None
            try:
                for part in _parts(pending, self._part_users):
                    advanced = self._advance(part, model, wanted, server_id, started)
                    if writing is not None:
                        refused += self._keep(writing, stored)
                    writing, started = advanced, time.perf_counter()
                if writing is not None:
                    refused += self._keep(writing, stored)
            finally:
                if writing is not None:
                    wait([writing.refused])  # nothing is on its way to the store when the batch is done again
            pending = refused
        raise Unavailable(f"the state store refused {len(pending)} writes {_WRITE_ATTEMPTS} times in a row")

    def _advance(
        self, events: list[Placed], model: InferenceModel | None, wanted: Wanted, server_id: str, started: float
    ) -> _Advanced:
        """Read the users' states, advance them, and begin to write them."""
        states = self._read(list(dict.fromkeys(event.user_id for event in events)))
        started = self._lap("read", started)
        again = redelivered_choices(states, events, model) if self._fold_in and model is not None else []
        outcome = advance_states(states, events, model, self._recent_limit, wanted)
        self._lap("advance", started)
        return _Advanced(events, outcome, again, self._writer.submit(self._write, states, outcome, server_id))

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

    def _publish(
        self, touched: Mapping[int, Iterable[str]], bad: Sequence[tuple[Record, InvalidEvent]], source_topic: str
    ) -> None:
        written_at = int(self._clock() * 1000)
        for number, named in touched.items():
            users = list(named)
            for at in range(0, len(users), _USERS_IN_MESSAGE):
                update = StateUpdate(users[at : at + _USERS_IN_MESSAGE], written_at=written_at)
                self._publisher.send(self._topics.state_updates, str(number).encode(), encode_update(update))
        for record, error in bad:
            self._metrics.dead_letters.labels(error.field or "value").inc()
            place = {"topic": source_topic, "partition": record.partition, "offset": record.offset}
            log.warning("dead letter: %s", error, extra=place)
            headers = [("error", str(error).encode())]
            headers += [(f"source.{name}", str(value).encode()) for name, value in place.items()]
            self._publisher.send(self._topics.dlq, record.key, record.value, headers)

    def _observe(self, records: Mapping[int, Sequence[Record]], events: Sequence[Placed]) -> None:
        metrics, now = self._metrics, self._clock()
        metrics.batch_events.observe(sum(map(len, records.values())))
        metrics.batch_users.observe(len({event.user_id for event in events}))
        since_event, since_arrival = metrics.freshness.labels("event"), metrics.freshness.labels("arrival")
        for event in events[:: max(1, len(events) // _FRESHNESS_SAMPLES)]:
            since_event.observe(max(0.0, now - event.ts / 1000))
        for batch in records.values():
            for record in batch[:: max(1, len(batch) // _FRESHNESS_SAMPLES)]:
                since_arrival.observe(max(0.0, now - record.timestamp / 1000))


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
