"""People who type: each word is looked for among the suggestions asked for just before it, then published."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

from services.simulator.demo.client import RankingClient, path_of
from services.simulator.keyboard_board import SHOWN, Board
from shared.core.errors import DriftwoodError, Unavailable
from shared.core.events import Interaction, encode
from shared.core.ports import Publisher

WORD, DISMISS = "word", "dismiss"
_FLUSH_S = 30.0
_CONFIRM_S = 1.0
_FORGIVEN_S = 1.0
_PAUSE_S = 0.2
_FAILURES = (DriftwoodError, OSError, ValueError, KeyError, http.client.HTTPException)


class Suggested(NamedTuple):
    """What the keyboard shows; model: the version, or the strategy where none is at work."""

    words: tuple[str, ...]
    model: str
    recommendation_id: str


class Writer:
    """A user who types one document."""

    def __init__(self, user_id: str, words: list[str]) -> None:
        self.user_id = user_id
        self._words = deque(words)

    def next(self) -> str | None:
        """The word that will be typed now; None at the end."""
        return self._words.popleft() if self._words else None


class Desk:
    """Documents to be typed, so many at a time, handed to the threads."""

    def __init__(self, documents: Iterable[list[str]], run: str, most_words: int) -> None:
        self._documents = iter(enumerate(documents))
        self._run, self._left = run, most_words
        self._lock = threading.Lock()

    def writer(self) -> Writer | None:
        """Somebody with the next document; None when all are taken, or enough words are."""
        with self._lock:
            number, words = next(self._documents, (0, []))
            words = words[: self._left]
            self._left -= len(words)
            return Writer(f"{self._run}-{number}", words) if words else None


class Typing(threading.Thread):
    """A thread for some of the writers, who type a word each in turn, at ``rate`` words a second all together."""

    def __init__(
        self, name: str, desk: Desk, writers: int, rate: float, client: RankingClient, publish: Publish, board: Board
    ) -> None:
        super().__init__(name=name, daemon=True)
        self.halt = threading.Event()
        self.go = threading.Event()
        """Cleared: everyone pauses"""
        self.go.set()
        self._desk, self._client, self._publish, self._board = desk, client, publish, board
        self._rate, self._count = rate, writers

    def run(self) -> None:
        """Until all is typed, or halted; a failure reaches the board."""
        try:
            self._type()
        except _FAILURES as error:
            if not self.halt.is_set():
                self._board.failure = error
        finally:
            self._client.close()

    def _type(self) -> None:
        found = (self._desk.writer() for _ in range(self._count))
        writers = deque(writer for writer in found if writer is not None)
        due = time.monotonic()
        while writers and not self.halt.is_set():
            if not self.go.wait(_PAUSE_S):
                continue
            writer = writers.popleft()
            word = writer.next()
            if word is None:
                following = self._desk.writer()
                writers.extend([following] if following else [])
                continue
            writers.append(writer)
            now = time.monotonic()
            if due > now:
                self.halt.wait(due - now)
            due = max(due, now - _FORGIVEN_S) + 1 / self._rate
            self._word(writer.user_id, word)

    def _word(self, user_id: str, word: str) -> None:
        try:
            shown = suggested(self._client.raw(path_of(user_id, SHOWN)))
        except Unavailable:
            self._board.unanswered += 1
            shown = None
        now = time.time_ns() // 1_000_000
        if shown is not None:
            self._board.typed(word, word in shown.words, shown.model)
        self._publish(events_of(user_id, word, shown, now))


def suggested(body: bytes) -> Suggested:
    """A ranking as suggestions."""
    value = json.loads(body)
    words = tuple(item["item_id"] for item in value["items"])
    model = value["model_version"] if value["strategy"] == "gru" else value["strategy"]
    return Suggested(words, str(model), value["recommendation_id"])


def events_of(user_id: str, word: str, shown: Suggested | None, now: int) -> list[Interaction]:
    """What a typed word tells: the word itself, after a dismissal of each suggestion if none of them was it."""
    accepted = shown is not None and word in shown.words
    source = shown.recommendation_id if shown is not None else None
    rejected = shown.words if shown is not None and not accepted else ()
    typed = Interaction(user_id, word, WORD, now, session_id=user_id, recommendation_id=source if accepted else None)
    return [
        *(
            Interaction(user_id, other, DISMISS, now, session_id=user_id, recommendation_id=source)
            for other in rejected
        ),
        typed,
    ]


Publish = Callable[[list[Interaction]], None]


class SharedPublisher:
    """Publishes for all threads, and waits now and then until everything has arrived."""

    def __init__(self, publisher: Publisher, topic: str) -> None:
        self._publisher, self._topic = publisher, topic
        self._lock = threading.Lock()
        self._confirm_at = 0.0

    def __call__(self, events: list[Interaction]) -> None:
        """In order. Raises Unavailable."""
        with self._lock:
            for event in events:
                self._publisher.send(self._topic, event.user_id.encode(), encode(event))
            if time.monotonic() >= self._confirm_at:
                self.flush()
                self._confirm_at = time.monotonic() + _CONFIRM_S

    def flush(self) -> None:
        """Wait for everything. Raises Unavailable."""
        self._publisher.flush(_FLUSH_S)
