"""One thread that ranks all who wait, together: HTTP requests first, then users whose ranking goes to the topic."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections import defaultdict, deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from services.recommender.batch import BatchRanker
from services.recommender.metrics import RecommenderMetrics
from services.recommender.queries import Outcome, Query
from services.recommender.serving import Serving
from shared.core.errors import Unavailable

log = logging.getLogger(__name__)

MAX_WAITING = 4096
"""Requests in the queue: a few seconds of work. More would only be answered after their deadline."""

_TOPIC_USERS = 8
"""Users of the topic ranked at once: 2 ms for 50,000 items. At 16, 4 ms and more, a request in ten met such a batch."""

_TOPIC_REST = 3
"""While HTTP requests come, the topic pauses so many times as long as it took: a quarter of the time is its own.

So few requests meet a batch of the topic, and it never stands still. Taken into the batches of HTTP instead, a few
users at a time, it doubled the p90 of 1,000 requests a second: nearly every batch then had something to compute.
"""

_HTTP_QUIET_S = 0.05
"""Without a request for so long, the topic takes all the time it needs."""


@dataclass(slots=True)
class _Request:
    query: Query
    future: asyncio.Future[Outcome]
    deadline: float


@dataclass(slots=True)
class _Bundle:
    """Queries of the emitter, answered bit by bit when there is time."""

    queries: Sequence[Query]
    outcomes: list[Outcome]
    future: Future[list[Outcome]]


class Ranker:
    """Gathers queries into batches. A batch is whatever waits when the one before is done: no time is added."""

    def __init__(self, batches: BatchRanker, max_batch: int, deadline_s: float, metrics: RecommenderMetrics) -> None:
        self._batches = batches
        self._max_batch = max_batch
        self._deadline_s = deadline_s
        self._metrics = metrics
        self._inbox: queue.SimpleQueue[_Request | _Bundle | str | None] = queue.SimpleQueue()
        self._waiting: deque[_Request] = deque()
        self._bundles: deque[_Bundle] = deque()
        self._last_request = self._topic_due = 0.0
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="ranker", daemon=True)

    @property
    def serving(self) -> Serving | None:
        """The model in use."""
        return self._batches.serving

    def serve(self, serving: Serving) -> None:
        """Use another model from the next batch on."""
        self._batches.serving = serving

    def start(self) -> None:
        """Begin to rank."""
        self._thread.start()

    def stop(self) -> None:
        """Answer what waits, then end."""
        self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def ask(self, query: Query) -> asyncio.Future[Outcome]:
        """From an event loop: the outcome, Unavailable when it took too long or too many wait."""
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        if self._inbox.qsize() + len(self._waiting) >= MAX_WAITING:
            self._metrics.refused.labels("overload").inc()
            future.set_result(Unavailable(f"more than {MAX_WAITING} requests wait to be ranked"))
        else:
            self._inbox.put(_Request(query, future, time.monotonic() + self._deadline_s))
        return future

    def ask_later(self, queries: Sequence[Query]) -> Future[list[Outcome]]:
        """From another thread: the outcomes, when there is time for them."""
        bundle = _Bundle(queries, [], Future())
        if queries:
            self._inbox.put(bundle)
        else:
            bundle.future.set_result([])
        return bundle.future

    def has_requests(self) -> bool:
        """Whether HTTP requests come at present."""
        return time.monotonic() - self._last_request < _HTTP_QUIET_S

    def forget(self, user_id: str) -> None:
        """Drop what is kept of the user, after the batch at work."""
        self._inbox.put(user_id)

    def _run(self) -> None:
        while self._gather():
            requests = self._next_requests()
            if requests:
                self._last_request = time.monotonic()
                outcomes = self._rank([r.query for r in requests])
                self._metrics.refused.labels("unavailable").inc(sum(isinstance(o, Unavailable) for o in outcomes))
                self._answer(requests, outcomes)
            if self._bundles and time.monotonic() >= self._topic_due:
                self._rank_for_topic(self._bundles[0])

    def _rank_for_topic(self, bundle: _Bundle) -> None:
        started = time.monotonic()
        bundle.outcomes += self._rank(bundle.queries[len(bundle.outcomes) :][:_TOPIC_USERS])
        if len(bundle.outcomes) == len(bundle.queries):
            self._bundles.popleft()
            bundle.future.set_result(bundle.outcomes)
        now = time.monotonic()
        self._topic_due = now + _TOPIC_REST * (now - started) if self.has_requests() else now

    def _rank(self, queries: Sequence[Query]) -> list[Outcome]:
        self._metrics.batch.observe(len(queries))
        try:
            return self._batches.rank(queries)
        except Exception as error:  # one bad batch must not end the thread that all wait for
            log.exception("a batch could not be ranked")
            return [Unavailable(f"ranking failed: {error!r}")] * len(queries)

    def _gather(self) -> bool:
        """Take over all that came; wait while there is nothing to do. False at the end."""
        while True:
            idle = not (self._waiting or self._bundles)
            if self._stopping and idle:
                return False
            pause = 0.0 if self._waiting else self._topic_due - time.monotonic()
            try:
                if idle:
                    arrived = self._inbox.get()
                elif pause > 0:
                    arrived = self._inbox.get(timeout=pause)
                else:
                    arrived = self._inbox.get_nowait()
            except queue.Empty:
                return True
            if isinstance(arrived, _Request):
                self._waiting.append(arrived)
            elif isinstance(arrived, _Bundle):
                self._bundles.append(arrived)
            elif isinstance(arrived, str):
                self._batches.forget(arrived)
            else:
                self._stopping = True

    def _next_requests(self) -> list[_Request]:
        requests: list[_Request] = []
        now = time.monotonic()
        late: list[_Request] = []
        while self._waiting and len(requests) < self._max_batch:
            request = self._waiting.popleft()
            (requests if now < request.deadline else late).append(request)
        if late:
            self._metrics.refused.labels("deadline").inc(len(late))
            error = Unavailable(f"no ranking within {self._deadline_s:g} s: too much to do, or Redis answers slowly")
            self._answer(late, [error] * len(late))
        return requests

    def _answer(self, requests: Sequence[_Request], outcomes: Sequence[Outcome]) -> None:
        """Wake the event loop once for all."""
        done: defaultdict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Outcome], Outcome]]] = defaultdict(list)
        for request, outcome in zip(requests, outcomes, strict=True):
            if outcome is None:
                self._waiting.append(request)
                continue
            done[request.future.get_loop()].append((request.future, outcome))
        for loop, pairs in done.items():
            try:
                loop.call_soon_threadsafe(_resolve, pairs)
            except RuntimeError:  # the loop was closed: nobody waits any more
                log.info("%d answers came after the server had stopped", len(pairs))


def _resolve(pairs: Sequence[tuple[asyncio.Future[Outcome], Outcome]]) -> None:
    for future, outcome in pairs:
        if not future.done():
            future.set_result(outcome)
