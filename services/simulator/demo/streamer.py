"""The two threads at work in the demo: one streams the interactions, one measures how soon they are seen."""

from __future__ import annotations

import http.client
import queue
import secrets
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import polars as pl

from services.simulator.demo.client import Held, RankingClient
from services.simulator.demo.measure import Board
from services.simulator.demo.sources import Source
from services.simulator.keep_up import KeepUp
from shared.core.errors import DriftwoodError, Unavailable
from shared.core.events import Interaction, encode
from shared.core.ports import Publisher

TOP = 20
_TRENDING_EVERY_S = 0.5
_LATE_S = 0.05  # a stream that is so late asks for no ranking and publishes at once
_FORGIVEN_S = 1.0  # of lateness; what is beyond is not caught up with
_CONFIRM_S = 1.0
_FLUSH_S = 30.0
_LAG_EVERY = 5_000
_SEEN_WITHIN_S = 5.0
_PROBE_EVERY_S = 0.1
_PROBE_PAUSE_S = 0.001
_FAILURES = (DriftwoodError, OSError, ValueError, KeyError, http.client.HTTPException)


class _Worker(threading.Thread):
    """A thread whose failure reaches the board."""

    def __init__(self, name: str, board: Board) -> None:
        super().__init__(name=name, daemon=True)
        self.board = board
        self.halt = threading.Event()

    def run(self) -> None:
        try:
            self.work()
        except _FAILURES as error:
            if not self.halt.is_set():
                self.board.failure = error

    def work(self) -> None:
        """The thread's job, until ``halt`` is set."""
        raise NotImplementedError


class Probe(NamedTuple):
    """An event whose effect is waited for; ``sent_at``: monotonic seconds just before it was published."""

    user_id: str
    ts: int
    sent_at: float


class Freshness(_Worker):
    """Asks for a user's ranking until it knows of the user's newest event: the time since that was published."""

    def __init__(self, board: Board, client: RankingClient) -> None:
        super().__init__("freshness", board)
        self._client = client
        self._probes: queue.Queue[Probe] = queue.Queue(maxsize=1)
        self._idle_from = 0.0

    def offer(self, probe: Callable[[], Probe]) -> None:
        """Take this one if there is time for it."""
        if self._probes.empty() and time.monotonic() >= self._idle_from:
            self._idle_from = float("inf")
            self._probes.put_nowait(probe())

    def work(self) -> None:
        """One probe after the other, ten a second at most."""
        while not self.halt.is_set():
            try:
                probe = self._probes.get(timeout=0.2)
            except queue.Empty:
                continue
            self._wait_for(probe)
            self._idle_from = time.monotonic() + _PROBE_EVERY_S
        self._client.close()

    def _wait_for(self, probe: Probe) -> None:
        while not self.halt.is_set():
            try:
                held = self._client.ranking(probe.user_id, 1)
                self.board.http_rankings.add()
            except Unavailable:
                self.board.unanswered += 1
                self.halt.wait(0.1)
                continue
            waited = time.monotonic() - probe.sent_at
            if held.strategy == "gru" and held.as_of >= probe.ts:
                self.board.freshness_ms.append(waited * 1000)
                return
            if waited > _SEEN_WITHIN_S:
                self.board.unseen += 1
                return
            self.halt.wait(_PROBE_PAUSE_S)


class Streamer(_Worker):
    """Publishes at ``rate`` events a second; asks for the user's ranking before each while ``asking``."""

    def __init__(
        self,
        source: Source,
        publisher: Publisher,
        topic: str,
        client: RankingClient,
        freshness: Freshness,
        limiter: KeepUp,
    ) -> None:
        super().__init__("stream", freshness.board)
        self.rate = 1.0
        self.asking = False
        self.history: list[Interaction] | None = []
        self._source, self._publisher, self._topic = source, publisher, topic
        self._client, self._freshness, self._limiter = client, freshness, limiter
        self._nobody = f"nobody-{secrets.token_hex(8)}"
        self._trending: frozenset[str] = frozenset()
        self._trending_until = 0.0
        self._learnt: frozenset[str] = frozenset()
        self._confirm_at = 0.0

    def work(self) -> None:
        """Until halted or the source ends; each event on time, rankings only while there is time."""
        due = time.monotonic()
        while not self.halt.is_set():
            now = time.monotonic()
            if due > now:
                self.halt.wait(due - now)
            event = self._source.next()
            if event is None:
                self.board.exhausted = True
                break
            due = max(due, now - _FORGIVEN_S) + 1 / self.rate
            held = self._ask(event) if self.asking and time.monotonic() - due < _LATE_S else None
            self._publish(event, held)
        self._publisher.flush(_FLUSH_S)
        self._client.close()

    def history_table(self) -> pl.DataFrame:
        """The events kept so far, in the columns of a Driftwood log; from now on no more are kept."""
        events, self.history = self.history or [], None
        self._learnt = frozenset(event.item_id for event in events)
        columns = {
            "session_id": [event.session_id for event in events],
            "user_id": [event.user_id for event in events],
            "item_id": [event.item_id for event in events],
            "timestamp_ms": [event.ts for event in events],
            "event_type": [event.event_type for event in events],
        }
        return pl.DataFrame(columns, schema_overrides={"session_id": pl.String})

    def _ask(self, event: Interaction) -> Held | None:
        try:
            if time.monotonic() >= self._trending_until:
                self._trending = frozenset(self._client.ranking(self._nobody, TOP).items)
                self._trending_until = time.monotonic() + _TRENDING_EVERY_S
            held = self._client.ranking(event.user_id, TOP)
        except Unavailable:
            self.board.unanswered += 1
            return None
        self.board.http_rankings.add()
        item, by_model = event.item_id, held.strategy == "gru"
        for hits in (self.board.hits, self.board.whole):
            hits.add(item in held.items, item in self._trending, by_model, item not in self._learnt)
        if by_model:
            self.board.model_version, self.board.sample_user = held.model_version, event.user_id
        return held

    def _publish(self, event: Interaction, held: Held | None) -> None:
        value, now = encode(event), time.monotonic()
        self._publisher.send(self._topic, event.user_id.encode(), value)
        self.board.events.add()
        if self.history is not None:
            self.history.append(event)
        # Only an event that is newer than all that the ranking knew of can be recognised in the next one.
        if held is not None and held.strategy == "gru" and event.ts > held.as_of:
            self._freshness.offer(lambda: Probe(event.user_id, event.ts, now))
        if now >= self._confirm_at:
            self._publisher.flush(_FLUSH_S)
            self._confirm_at = now + _CONFIRM_S
        if self._limiter.limit and self.board.events.count % _LAG_EVERY == 0:
            self._limiter.wait(self.halt, lambda note: None)
