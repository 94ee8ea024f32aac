"""State updates in, rankings to the recommendations topic."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from services.recommender.metrics import RecommenderMetrics
from services.recommender.queries import Answer, Ids, Outcome, Query, encode_answer
from services.recommender.ranker import Ranker
from services.recommender.recent import RecentUpdates
from shared.core.errors import DriftwoodError, Unavailable
from shared.core.ports import Publisher, Record
from shared.core.ranking import StateUpdate, decode_update

log = logging.getLogger(__name__)

_POLL_S = 0.5
_POLL_RECORDS = 500
_ROUND_USERS = 8192
"""Users in one round, at most one message more: bounds memory while there is a backlog."""

_SEND_USERS = 32
"""Rankings encoded and sent in one go: 3 ms of Python, in which no request is answered."""

_SEND_REST = 3
"""While HTTP requests come, a pause of so many times as long follows. In one go, the rankings of a backlog kept 1,000
requests a second waiting for 260 ms (p99)."""

_OVERTAKEN_S = 15.0
"""The consumer may have a new model so long before us: who was ranked by the old one meanwhile is ranked again."""

_OVERTAKEN_USERS = 100_000

_FLUSH_S = 30.0
_TOMBSTONE = "tombstone"


class UpdateReader(Protocol):
    """The state-updates topic, read in a group."""

    def poll(self, timeout_s: float, max_records: int) -> list[Record]:
        """The next records. Raises Unavailable."""

    def commit(self, records: Sequence[Record]) -> None:
        """Never again these records. Raises Unavailable."""

    def rewind(self, records: Sequence[Record]) -> None:
        """Read these records again."""

    def close(self) -> None:
        """Leave the group."""


@dataclass(frozen=True)
class EmitterOptions:
    """``linger_s``: changes of one user within this time give one message."""

    updates_topic: str
    topic: str
    k: int
    linger_s: float


class Emitter:
    """A round: gather updates, rank each user once, publish, await the acknowledgements, commit the updates.

    What is published is the ranking of the state as it is now, whatever the update said; a user without events gets
    a null value, which removes the ranking. So a round can be done again, and is, after any failure.
    """

    def __init__(
        self,
        read: Callable[[], UpdateReader],
        publish: Callable[[], Publisher],
        ranker: Ranker,
        ids: Ids,
        options: EmitterOptions,
        metrics: RecommenderMetrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._make_reader = read
        self._make_publisher = publish
        self._ranker = ranker
        self._ids = ids
        self._options = options
        self._metrics = metrics
        self._clock = clock
        self._reader: UpdateReader | None = None
        self._publisher: Publisher | None = None
        self._version: str | None = None
        self._ranked: deque[tuple[float, str]] = deque(maxlen=_OVERTAKEN_USERS)
        self._again: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="emitter", daemon=True)
        self.problem: str | None = None
        """Why rankings do not reach the topic at present."""
        self.recent = RecentUpdates()

    def start(self) -> None:
        """Begin to emit."""
        self._thread.start()

    def stop(self) -> None:
        """Finish the round at work, leave the group."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=15)

    def _run(self) -> None:
        pause = 0.2
        while not self._stop.is_set():
            try:
                self.round()
                pause, self.problem = 0.2, None
            except DriftwoodError as error:
                self.problem = str(error)
                self._metrics.emission_failures.inc()
                log.error("rankings not published, trying again in %.1f s: %s", pause, error)
                self._stop.wait(pause)
                pause = min(2 * pause, 5.0)
            except Exception as error:
                self.problem = repr(error)
                self._metrics.emission_failures.inc()
                log.exception("emission failed")
                self._stop.wait(pause)
                pause = min(2 * pause, 5.0)
        for part in (self._reader, self._publisher):
            if part is not None:
                with contextlib.suppress(DriftwoodError):
                    part.close()

    def round(self) -> int:
        """One round; the number of users published. Raises Unavailable, and the updates will be read again."""
        if self._publisher is None:
            self._publisher = self._make_publisher()
        if self._reader is None:
            self._reader = self._make_reader()
        records, users = self._gather(self._reader)
        self._look_at_model()
        for user in self._again[:_ROUND_USERS]:
            users.setdefault(user, None)
        if not records and not users:
            return 0
        try:
            self._emit(self._publisher, users)
            if records:
                self._reader.commit(records)
        except BaseException:
            self._reader.rewind(records)
            publisher, self._publisher = self._publisher, None
            with contextlib.suppress(DriftwoodError):
                publisher.close()
            raise
        self._again = self._again[_ROUND_USERS:]
        now = time.monotonic()
        self._ranked.extend((now, user) for user in users)
        return len(users)

    def _look_at_model(self) -> None:
        """After a change of model, note whom the model before ranked last: the consumer may have had the new one.

        Its sweep leaves out states that are the new model's already, as those of users who have just acted are.
        """
        serving = self._ranker.serving
        version = serving.model.version if serving is not None else None
        if version != self._version:
            since = time.monotonic() - _OVERTAKEN_S
            self._again = list(dict.fromkeys([*self._again, *(user for at, user in self._ranked if at > since)]))
            self._ranked.clear()
            self._version = version

    def _gather(self, reader: UpdateReader) -> tuple[list[Record], dict[str, StateUpdate | None]]:
        """Updates of one linger time: their records, and user -> the oldest of the user's."""
        records: list[Record] = []
        try:
            return records, self._read(reader, records)
        except BaseException:
            reader.rewind(records)  # those of the polls before the one that failed
            raise

    def _read(self, reader: UpdateReader, records: list[Record]) -> dict[str, StateUpdate | None]:
        """Extends ``records``."""
        users: dict[str, StateUpdate | None] = {}
        deadline = time.monotonic() + _POLL_S
        while len(users) < _ROUND_USERS:
            polled = reader.poll(max(0.0, deadline - time.monotonic()), _POLL_RECORDS)
            if polled and not records:
                deadline = time.monotonic() + self._options.linger_s
            records.extend(polled)
            for record in polled:
                update = self._decode(record)
                for user in update.users if update else ():
                    if user not in users or (update is not None and update.forgotten):
                        users[user] = update
            if self._stop.is_set() or time.monotonic() >= deadline:
                break
        return users

    def _decode(self, record: Record) -> StateUpdate | None:
        try:
            return decode_update(record.value or b"")
        except msgspec.DecodeError as error:
            place = {"topic": self._options.updates_topic, "partition": record.partition, "offset": record.offset}
            log.error("not a state update, left out: %s", error, extra=place)
            return None

    def _emit(self, publisher: Publisher, users: Mapping[str, StateUpdate | None]) -> None:
        """Rank and send, a few users at a time: while some are sent, the next are ranked."""
        queries = [Query(user, self._options.k) for user in users]
        parts = [queries[at : at + _SEND_USERS] for at in range(0, len(queries), _SEND_USERS)] or [[]]
        sent: Counter[str] = Counter()
        ranked = self._ranker.ask_later(parts[0])
        for following in [*parts[1:], []]:
            outcomes = ranked.result(timeout=_FLUSH_S)
            ranked = self._ranker.ask_later(following)
            started = time.monotonic()
            self._send(publisher, outcomes, sent)
            if following and self._ranker.has_requests():
                self._stop.wait(_SEND_REST * (time.monotonic() - started))
        publisher.flush(_FLUSH_S)
        self._observe(sent, users)

    def _send(self, publisher: Publisher, outcomes: Sequence[Outcome], sent: Counter[str]) -> None:
        for outcome in outcomes:
            if not isinstance(outcome, Answer):
                raise outcome or Unavailable("a ranking was not finished")
            value = encode_answer(outcome, self._ids()) if outcome.known else None
            publisher.send(self._options.topic, (outcome.user_id or "").encode(), value)
            sent[outcome.strategy if outcome.known else _TOMBSTONE] += 1

    def _observe(self, sent: Counter[str], users: Mapping[str, StateUpdate | None]) -> None:
        now = self._clock()
        self.recent.note(users, int(now * 1000))
        for strategy, count in sent.items():
            self._metrics.emitted.labels(strategy).inc(count)
            self._metrics.rankings.labels("topic", strategy).inc(count)
        self._metrics.emission_users.observe(len(users))
        written = [update.written_at for update in users.values() if update is not None and update.written_at]
        ages = [max(0.0, now - at / 1000) for at in written]
        self._metrics.emission_behind.set(max(ages, default=0.0))
        for age in ages[:: max(1, len(ages) // 16)]:
            self._metrics.emission_freshness.observe(age)
