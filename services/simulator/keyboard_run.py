"""The keyboard scenario from start to end: the real services, retrainer included, and people who type."""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.simulator.demo.client import RankingClient
from services.simulator.demo.processes import DemoFailed, Stack, environment_of_its_own
from services.simulator.keyboard_board import BUCKET, SHOWN, Board, Tally
from services.simulator.keyboard_typing import Desk, SharedPublisher, Typing
from shared.adapters.chart import Line, Panel, draw
from shared.adapters.embedded import recognise
from shared.adapters.kafka import KafkaPublisher
from shared.adapters.settings import KafkaSettings
from shared.core.errors import Unavailable

THREADS = 4
"""Of typing: each waits for an answer before the next word."""
_TICK_S = 0.2
_LOOK_S = 2.0
_FIRST_MODEL_S = 300.0
_WITHOUT_MODEL = 0.4
"""Share of the words that may be typed before the first model: then everyone pauses until it is there."""


@dataclass(frozen=True, slots=True)
class KeyboardRules:
    """How much is typed and how fast, and when the services learn."""

    words: int
    rate: float
    """Words a second, all writers together"""
    writers: int
    first_training: int
    """Documents begun before the first model is trained"""
    max_age_s: float
    """An older model is trained anew on what was typed: a text drifts too little for alarms to do it"""
    seed: int = 1

    def environment(self) -> dict[str, str]:
        """The services' settings for a stream that takes minutes and not months; the user's own go before these.

        A suggestion that was not taken is off the keyboard for a second, about as long as a word takes to type: nobody
        says that the word is bad for ever, only that it does not come next.
        """
        return {
            "DISMISS_S": "1",
            "SESSION_LOG_FLUSH_S": "2",
            "TRAIN_MIN_SESSIONS": str(self.first_training),
            "TRAIN_WIDTH": "64",
            "TRAIN_SEED": str(self.seed),
            "MODEL_MAX_AGE_S": str(self.max_age_s),
            "DRIFT_COOLDOWN_S": str(self.max_age_s / 2),
            "DRIFT_MIN_FALL": "0.05",
        }


class Stopped(Exception):
    """Somebody asked to stop."""


class Keyboard:
    """One run in a folder of its own; ``close`` ends all that it started."""

    def __init__(
        self, documents: list[list[str]], rules: KeyboardRules, folder: Path, show: Callable[[str, bool], None]
    ) -> None:
        """show: a line for people; True: one of progress, that the next may replace."""
        self._rules, self._show = rules, show
        self.board = Board()
        self.stop = threading.Event()
        run = f"writer-{secrets.token_hex(3)}"
        self._desk = Desk(documents, run, rules.words)
        self._somebody = f"{run}-0"
        self._most = min(rules.words, sum(len(document) for document in documents))
        self._environment = rules.environment() | environment_of_its_own(folder)
        self._stack: Stack | None = None
        self._publisher: KafkaPublisher | None = None
        self._threads: list[Typing] = []
        self._models: RankingClient | None = None
        self._look_at = 0.0
        self._paused_at: float | None = None
        self._at_work = False
        self._noted: set[str] = set()
        self.gates: list[dict[str, Any]] = []
        """What was decided on each version that the retrainer trained"""

    def run(self) -> None:
        """Returns when all is typed. Raises DemoFailed, Stopped, Unavailable."""
        self._start()
        while any(thread.is_alive() for thread in self._threads):
            self._check()
            self._pause_without_model()
            self._look()
            self._progress()
            self.stop.wait(_TICK_S)
        self._check()
        self._look()

    def close(self) -> None:
        """Leaves no process behind."""
        for thread in self._threads:
            thread.halt.set()
        for thread in self._threads:
            thread.join(10.0)
        if self._models is not None:
            self._models.close()
        if self._publisher is not None:
            self._publisher.close()
        if self._stack is not None:
            self._stack.stop()

    def _start(self) -> None:
        rules = self._rules
        self._stack = Stack(self._environment, lambda line: self._show(line, False))
        ready = self._stack.ready(self._check_stop)
        kafka = recognise(KafkaSettings(kafka_bootstrap_servers=ready["kafka"]))
        self._publisher = KafkaPublisher(kafka)
        publish = SharedPublisher(self._publisher, kafka.topic_interactions)
        self._models = RankingClient(ready["http"])
        self._show(f"the system is up: {ready['http']}; {rules.writers} writers begin to type", False)
        for number in range(THREADS):
            writers, rate = -(-rules.writers // THREADS), rules.rate / THREADS
            client = RankingClient(ready["http"])
            self._threads.append(Typing(f"typing-{number}", self._desk, writers, rate, client, publish, self.board))
        for thread in self._threads:
            thread.start()

    def _check_stop(self) -> None:
        if self.stop.is_set():
            raise Stopped

    def _check(self) -> None:
        self._check_stop()
        assert self._stack is not None
        self._stack.check()
        if self.board.failure is not None:
            raise DemoFailed(f"typing broke: {self.board.failure}") from self.board.failure

    def _pause_without_model(self) -> None:
        """On a slow machine everything could be typed before there is anything to see."""
        champion = self._suggests()
        if self._paused_at is None:
            if not champion and self.board.total.words >= _WITHOUT_MODEL * self._most:
                self._paused_at = time.monotonic()
                self._show("the writers wait for the first model", False)
                for thread in self._threads:
                    thread.go.clear()
        elif champion or time.monotonic() - self._paused_at > _FIRST_MODEL_S:
            for thread in self._threads:
                thread.go.set()
            self._paused_at = float("inf")

    def _suggests(self) -> bool:
        """Whether a model is at work: trained, promoted, and taken up by consumer and recommender."""
        if not any(gate["decision"] == "promoted" for gate in self.gates):
            return False
        if not self._at_work and self._models is not None:
            try:
                self._at_work = self._models.ranking(self._somebody, SHOWN).strategy == "gru"
            except Unavailable:
                self.board.unanswered += 1
        return self._at_work

    def _look(self) -> None:
        """Tell what the retrainer has noted since the last look."""
        assert self._models is not None
        if time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + _LOOK_S
        try:
            events = json.loads(self._models.raw("/v1/models"))["events"]
        except Unavailable:
            self.board.unanswered += 1
            return
        for note in reversed(events):
            key = json.dumps(note, sort_keys=True)
            if key in self._noted:
                continue
            self._noted.add(key)
            if note["kind"] == "gate":
                self.gates.append(note["details"])
            if note["kind"] in ("gate", "alarm", "rollback"):
                self._show(told(note["kind"], note["details"]), False)

    def _progress(self) -> None:
        board, recent = self.board, self.board.recent()
        text = f"typed {board.total.words:,} words; accepted {board.total.share:.1%}, lately {recent.share:.1%}"
        model = board.swaps[-1][1] if board.swaps else "none"
        self._show(f"{text}; three commonest words {recent.common_share:.1%}; model {model}", True)


def told(kind: str, details: dict[str, Any]) -> str:
    """A note of the retrainer for people."""
    if kind == "gate":
        return f"version {details.get('version')}: {details.get('decision')} by the gate"
    if kind == "alarm":
        return f"alarm: accepted in 20 {details['before']:.1%} before, {details['after']:.1%} now"
    return f"rolled back: version {details.get('version')}"


def result_of(board: Board, trained: int, seconds: float) -> dict[str, Any]:
    """The command's last line."""
    first, last, total = board.tenth(last=False), board.tenth(last=True), board.total
    return {
        "words": total.words,
        "accepted": round(total.share, 4),
        "first_tenth": round(first.share, 4),
        "last_tenth": round(last.share, 4),
        "commonest_words": round(total.common_share, 4),
        "commonest_words_last_tenth": round(last.common_share, 4),
        "by_model": {name: {"words": t.words, "accepted": round(t.share, 4)} for name, t in board.by_model.items()},
        "trainings": trained,
        "unanswered": board.unanswered,
        "seconds": round(seconds, 1),
    }


def draw_board(path: Path, title: str, board: Board) -> Path:
    """The share of accepted suggestions over the words typed. Raises SettingsInvalid, OSError."""
    full = [n for n, tally in enumerate(board.buckets) if tally.words >= BUCKET / 2]
    x = [float((n + 0.5) * BUCKET) for n in full]
    smooth = [sum(board.buckets[max(0, n - 2) : n + 1], Tally()) for n in full]
    lines = [
        Line("suggested by Driftwood", x, [tally.share for tally in smooth]),
        Line("the three commonest words so far", x, [tally.common_share for tally in smooth], dashed=True),
    ]
    moments = [(float(at), f"version {name}") for at, name in board.swaps if name != "trending"]
    panel = Panel("the next word was among the three suggested", lines, percent=True, moments=moments)
    return draw(path, title, [panel], "words typed")
