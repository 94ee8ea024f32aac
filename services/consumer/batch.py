"""One batch: decode, apply to the states, tell who changed, and hand over what tells of engagement."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from services.consumer.advance import Placed
from services.consumer.applying import PART_USERS, Applier, Stored
from services.consumer.decoding import Decoded, decode_records
from services.consumer.engagement import Engagement
from services.consumer.folding import fold, fresh_choices
from services.consumer.metrics import ConsumerMetrics
from services.consumer.partitions import Partition
from services.consumer.spans import Lot, Span, repeated_places
from shared.core.errors import InvalidEvent, TooLarge
from shared.core.events import EventRules
from shared.core.ports import Headers, Publisher, Record, StateStore
from shared.core.ranking import StateUpdate, encode_update
from shared.model.inference import InferenceModel

log = logging.getLogger(__name__)

_USERS_IN_MESSAGE = 2000
"""Users named in one state-updates message: at 256 bytes an id it still has half a megabyte."""

_FRESHNESS_SAMPLES = 16

_LETTER_BYTES = (512 << 10, 64 << 10, 8 << 10, 1 << 10, 0)
"""What is left of the value, and of the key, of a dead letter that the broker does not take whole: tried in turn."""


@dataclass(frozen=True)
class Topics:
    """Names of the topics that the consumer writes to."""

    state_updates: str
    dlq: str


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
        part_users: int = PART_USERS,
    ) -> None:
        self._applier = Applier(store, recent_limit, metrics, fold_in, part_users)
        self._publisher = publisher
        self._model = model
        self._rules = rules
        self._topics = topics
        self._metrics = metrics
        self.engagement = engagement
        self._clock = clock
        self._dismiss_s = dismiss_s
        self._fold_in = fold_in
        self._cuts = iter(_LETTER_BYTES)
        self._letter_bytes: int | None = None
        self._stages = {s: metrics.stage.labels(s) for s in ("decode", "publish")}

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
        self._lap("decode", started)
        model, offers = self._model(), self.engagement.offers.current
        wanted = self.engagement.wanted(len(decoded.events), model, self._fold_in)
        stored = self._applier.apply(decoded.events, model, wanted, server_id)
        started = time.perf_counter()
        arrived = {number: batch[0].timestamp for number, batch in mine.items()}
        self._publish(stored.touched, arrived, decoded.bad, source_topic)
        self._lap("publish", started)
        spans = {n: Span(owned[n], n, owned[n].next_offset, batch[-1].offset + 1) for n, batch in mine.items()}
        for number, span in spans.items():
            owned[number].next_offset, owned[number].epoch = span.end, mine[number][-1].leader_epoch
        events, moments = decoded.events, stored.moments
        choices = [*stored.choices, *fresh_choices(moments)] if self._fold_in else []
        if any(span.first < owned[number].counted for number, span in spans.items()):
            # Read again for states that a part of the store had lost; the sums had them all along.
            def counts(event: Placed) -> bool:
                return event.offset >= owned[event.partition].counted

            events = [event for event in events if counts(event)]
            moments = [moment for moment in moments if counts(moment.fresh.event)]
            choices = [choice for choice in choices if counts(choice.event)]
        self._count(owned, events)
        if model is not None:
            fold(owned, mine, choices, moments, model.fingerprint)
        self._score(Lot(spans, model, offers), stored, decoded)
        self._observe(mine, decoded.events)

    def _count(self, owned: Mapping[int, Partition], events: Sequence[Placed]) -> None:
        """What is popular, for long and now. An event from the future is of now: it would outweigh all others."""
        now = int(self._clock() * 1000)
        for event in events:
            if not event.dismissed_until:
                part = owned[event.partition]
                part.trending.add(event.item_id, event.ts)
                if part.recent is not None:
                    part.recent.add(event.item_id, min(event.ts, now))

    def _lap(self, stage: str, started: float) -> None:
        self._stages[stage].observe(time.perf_counter() - started)

    def _score(self, lot: Lot, stored: Stored, decoded: Decoded) -> None:
        """Hand over what tells of engagement; it is scored elsewhere."""
        lot.see(stored.warm, stored.cold)
        without = repeated_places(stored.repeated)
        for kind, places in decoded.served.items():
            if places:
                lot.serve(kind, places, without)
        lot.moments = [moment for moment in stored.moments if moment.sampled]
        self.engagement.add(lot)

    def _publish(
        self,
        touched: Mapping[int, Iterable[str]],
        arrived: Mapping[int, int],
        bad: Sequence[tuple[Record, InvalidEvent]],
        source_topic: str,
    ) -> None:
        written_at = int(self._clock() * 1000)
        for number, named in touched.items():
            users = list(named)
            for at in range(0, len(users), _USERS_IN_MESSAGE):
                part = users[at : at + _USERS_IN_MESSAGE]
                update = StateUpdate(part, written_at=written_at, arrived_at=arrived.get(number, 0))
                self._publisher.send(self._topics.state_updates, str(number).encode(), encode_update(update))
        for record, error in bad:
            self._metrics.dead_letters.labels(error.field or "value").inc()
            place = {"topic": source_topic, "partition": record.partition, "offset": record.offset}
            log.warning("dead letter: %s", error, extra=place)
            headers = [("error", str(error).encode())]
            headers += [(f"source.{name}", str(value).encode()) for name, value in place.items()]
            self._bury(record, headers)

    def _bury(self, record: Record, headers: Headers) -> None:
        """The dead letter, whole if the broker takes it: it tells where the rest is."""
        while True:
            key, value, more = record.key, record.value, list(headers)
            if (most := self._letter_bytes) is not None:
                for name, part in (("key", key), ("value", value)):
                    if part is not None and len(part) > most:
                        more.append((f"{name}.bytes", str(len(part)).encode()))
                key, value = key and key[:most], value and value[:most]
            if key is None and value is None:  # a producer may send neither
                key = b""
                more.append(("key", b"null"))
            try:
                self._publisher.send(self._topics.dlq, key, value, more)
            except TooLarge:
                if not self.cut_letters():
                    raise
            else:
                return

    def cut_letters(self) -> bool:
        """The broker did not take a record for its size: send less of each dead letter from now on; whether there is
        less to send."""
        most = next(self._cuts, None)
        if most is None:
            return False
        self._letter_bytes = most
        log.warning("dead letters are larger than the broker takes: the first %d bytes of key and value are sent", most)
        return True

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
