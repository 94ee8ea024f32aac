"""The console's threads: one asks Kafka, one Redis, one the registry, each about once a second, apart from serving."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from services.recommender.console.engagement import EngagementHistory
from services.recommender.console.live import FRESH_S, Live, Rate, Word, by_way, few
from services.recommender.recent import RecentUpdates
from shared.core.engagement import decode_engagement
from shared.core.errors import DriftwoodError
from shared.core.ports import Record
from shared.core.registry_port import ModelRegistry, Note

log = logging.getLogger(__name__)

TURN_S = 1.0
_MAX_RECORDS = 1000
"""Of engagement, decoded in one go: about ten milliseconds."""
_WAITS_S = {True: 0.5, False: 0.05}
"""For records, while it is known that there are some, and else."""
_READ_S = 1.5
"""Of one turn, at most: the numbers of the stream are looked at in between, while the last hours are read."""
_RESTS = 2.0
"""For each second of reading: the last hours leave two thirds of a core to those who serve."""
_LAG_EVERY = 2
"""Turns."""
NOTES = 200
"""Of the journal."""


class Tail(Protocol):
    """The engagement topic from a while ago on. See shared/adapters/topic_tail.py."""

    def poll(self, timeout_s: float, max_records: int) -> list[Record]:
        """The next records. Raises TopicMissing, Unavailable."""

    def left(self) -> int:
        """Records that are there and were not given yet."""

    def close(self) -> None:
        """Close the connection."""


class Stream(Protocol):
    """Where the interactions end and how far the consumers are. Raises Unavailable."""

    def total(self) -> int:
        """Interactions ever written."""

    def lag(self) -> int:
        """Of these, not taken in yet."""

    def close(self) -> None:
        """Close the connection."""


class Presence(Protocol):
    """What all recommenders say of themselves. See shared/adapters/presence.py."""

    def tell(self, word: bytes) -> dict[str, bytes]:
        """Say this; what all say. Raises Unavailable."""

    def close(self) -> None:
        """Close the connection."""


class Turns:
    """Calls ``step`` again and again in a thread of its own; ``problem`` tells why the last call failed."""

    def __init__(self, name: str, step: Callable[[], None], failed: Callable[[], None], pause_s: float) -> None:
        self._name, self._step, self._failed, self._pause_s = name, step, failed, pause_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"console-{name}", daemon=True)
        self.problem: str | None = None

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Come to an end soon; the thread may be waiting for an answer."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2)

    def _run(self) -> None:
        while not self._stop.is_set():
            self.turn()
            self._stop.wait(self._pause_s)

    def turn(self) -> None:
        """One call."""
        try:
            self._step()
            self.problem = None
        except DriftwoodError as error:
            if self.problem is None:
                log.warning("the console does not see %s: %s", self._name, error)
            self.problem = str(error)
            self._failed()
        except Exception as error:
            if self.problem is None:
                log.exception("the console does not see %s", self._name)
            self.problem = repr(error)
            self._failed()


class StreamWatch:
    """Kafka: the engagement topic into the history, the interactions into the live numbers.

    ``on_lag`` is told how far the consumers are behind, None where that is not known. ``reads``: the last hours are
    still being read, as after a start.
    """

    def __init__(
        self,
        open_tail: Callable[[], Tail],
        open_stream: Callable[[], Stream],
        history: EngagementHistory,
        live: Live,
        on_lag: Callable[[int | None], None] = lambda lag: None,
        rest: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open_tail, self._open_stream = open_tail, open_stream
        self._history, self._live, self._on_lag, self._rest, self._clock = history, live, on_lag, rest, clock
        self._tail: Tail | None = None
        self._stream: Stream | None = None
        self._turns = 0
        self.reads = False

    def step(self) -> None:
        """Raises Unavailable, TopicMissing."""
        try:
            self._look()
        except Exception:
            self._on_lag(None)
            raise
        if self._tail is None:
            self._tail, self.reads = self._open_tail(), True
        self._read(self._tail)

    def _look(self) -> None:
        if self._stream is None:
            self._stream = self._open_stream()
        total = self._stream.total()
        lag = self._live.now.lag if self._turns % _LAG_EVERY else self._stream.lag()
        self._turns += 1
        self._live.saw_topic(total, lag)
        self._on_lag(lag)

    def _read(self, tail: Tail) -> None:
        end, more = self._clock() + _READ_S, True
        while more and (began := self._clock()) < end:
            records = tail.poll(_WAITS_S[self.reads], _MAX_RECORDS)
            for record in records:
                self._take(record)
            more = bool(records)
            self.reads = self.reads and tail.left() >= _MAX_RECORDS
            if self.reads and more:
                self._rest(_RESTS * (self._clock() - began))

    def _take(self, record: Record) -> None:
        with contextlib.suppress(msgspec.DecodeError):  # the retrainer counts and logs these
            batch = decode_engagement(record.value or b"")
            self._history.add(batch, record.timestamp if record.timestamp > 0 else batch.ts)

    def failed(self) -> None:
        """Begin anew with the next step. What is read twice counts once: see EngagementHistory."""
        self._live.saw_topic(None, None)
        self.close()
        self._turns = 0

    def close(self) -> None:
        """Close the connections."""
        parts = (self._tail, self._stream)
        self._tail = self._stream = None
        self.reads = False
        for part in parts:
            if part is not None:
                with contextlib.suppress(DriftwoodError):
                    part.close()


class PresenceWatch:
    """Redis: this recommender's numbers out, all recommenders' in."""

    def __init__(
        self,
        presence: Presence,
        rankings: Callable[[], Mapping[str, float]],
        recent: RecentUpdates,
        emits: bool,
        live: Live,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """rankings: how many were given, by way."""
        self._presence, self._rankings, self._recent, self._emits, self._live = presence, rankings, recent, emits, live
        self._rates = {"http": Rate(clock), "topic": Rate(clock)}

    def step(self) -> None:
        """Raises Unavailable."""
        rates = by_way(self._rankings(), self._rates)
        in_redis, on_topic = self._recent.ages(FRESH_S)
        mine = Word(rates["http"], rates["topic"], few(in_redis), few(on_topic), self._emits)
        words = []
        for word in self._presence.tell(msgspec.json.encode(mine)).values():
            with contextlib.suppress(msgspec.DecodeError):  # of another version of ours
                words.append(msgspec.json.decode(word, type=Word))
        self._live.heard(words)
        self._live.sample()

    def failed(self) -> None:
        """What the others do is not known now."""
        self._live.heard(None)
        self._live.sample()


class JournalWatch:
    """The registry: the version in service, and what happened to the models."""

    def __init__(self, registry: ModelRegistry) -> None:
        self._registry = registry
        self.notes: Sequence[Note] = ()
        """The newest first."""
        self.champion: str | None = None

    def step(self) -> None:
        """Raises Unavailable, ModelDamaged (the pointer)."""
        self.notes = self._registry.notes(NOTES)
        self.champion = self._registry.current()
