"""The keyboard scenario from start to end: the real services, people who type, trainings while they do."""

from __future__ import annotations

import math
import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from services.simulator.demo.client import RankingClient
from services.simulator.demo.processes import DemoFailed, Stack, Training
from services.simulator.keyboard_board import BUCKET, Board
from services.simulator.keyboard_typing import WORD, Desk, SharedPublisher, Typing
from shared.adapters.chart import Line, Panel, draw
from shared.adapters.embedded import recognise
from shared.adapters.kafka import KafkaPublisher
from shared.adapters.settings import KafkaSettings

THREADS = 4
"""Of typing: each waits for an answer before the next word."""
DISMISS_S = 1
"""A suggestion that was not taken is off the keyboard for about as long as a word takes to type. Nobody says that the
word is bad for ever, only that it does not come next."""
_TICK_S = 0.2
_NOT_PASSED_ON = ("MODEL_URI", "SESSION_LOG_URI", "STACK_DIR", "HTTP_API_KEYS")
_TRAIN_FLAGS = ("--width", "64", "--sequence", "user", "--final", "tune")


@dataclass(frozen=True, slots=True)
class KeyboardRules:
    """How much is typed and how fast."""

    words: int
    rate: float
    """Words a second, all writers together"""
    writers: int
    first_training: int
    """Words after which the first model is trained; the next comes when there are ``growth`` times as many"""
    growth: float = 1.8
    seed: int = 1


class Stopped(Exception):
    """Somebody asked to stop."""


class Keyboard:
    """One run in a folder of its own; ``close`` ends all that it started."""

    def __init__(
        self, documents: list[list[str]], rules: KeyboardRules, folder: Path, show: Callable[[str, bool], None]
    ) -> None:
        """show: a line for people; True: one of progress, that the next may replace."""
        self._rules, self._folder, self._show = rules, folder, show
        self.board = Board()
        self.stop = threading.Event()
        self._desk = Desk(documents, f"writer-{secrets.token_hex(3)}", rules.words)
        self._environment = {name: value for name, value in os.environ.items() if name not in _NOT_PASSED_ON}
        self._environment |= {"STACK_DIR": str(folder / "stack"), "MODEL_URI": str(folder / "models")}
        self._environment.setdefault("DISMISS_S", str(DISMISS_S))
        self._stack: Stack | None = None
        self._publisher: KafkaPublisher | None = None
        self._training: Training | None = None
        self._threads: list[Typing] = []
        self._train_at = rules.first_training
        self.trained: list[dict[str, Any]] = []

    def run(self) -> None:
        """Returns when all is typed. Raises DemoFailed, Stopped, Unavailable."""
        self._start()
        while any(thread.is_alive() for thread in self._threads):
            self._check()
            self._train()
            self._progress()
            self.stop.wait(_TICK_S)
        self._check()

    def close(self) -> None:
        """Leaves no process behind."""
        for thread in self._threads:
            thread.halt.set()
        for thread in self._threads:
            thread.join(10.0)
        if self._training is not None:
            self._training.stop()
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

    def _train(self) -> None:
        """Train on all that was typed when there is enough more of it; the typing goes on meanwhile."""
        if self._training is None:
            if len(self._desk.collected) >= self._train_at:
                self._begin_training()
            return
        result = self._training.result()
        if result is not None:
            self._show(
                f"version {result['version']}: trained on {result['trained_events']:,} words in "
                f"{time.monotonic() - self._training.began:.0f} s",
                False,
            )
            self.trained.append(result)
            self._training = None

    def _begin_training(self) -> None:
        collected = self._desk.collected[:]
        self._train_at = math.ceil(len(collected) * self._rules.growth)
        data = self._folder / "typed.parquet"
        typed_log(collected).write_parquet(data)
        flags = [*_TRAIN_FLAGS, "--seed", str(self._rules.seed), "--checkpoints", str(self._folder / "checkpoints")]
        self._training = Training(str(data), self._environment["MODEL_URI"], flags, self._environment)

    def _progress(self) -> None:
        board, recent = self.board, self.board.recent()
        text = f"typed {board.total.words:,} words; accepted {board.total.share:.1%}, lately {recent.share:.1%}"
        model = board.swaps[-1][1] if board.swaps else "none"
        self._show(f"{text}; three commonest words {recent.common_share:.1%}; model {model}", True)


def typed_log(collected: list[tuple[str, str, int]]) -> pl.DataFrame:
    """In the columns of a Driftwood log."""
    users, words, times = zip(*collected, strict=True)
    columns: Mapping[str, Any] = {"session_id": users, "user_id": users, "item_id": words, "timestamp_ms": times}
    return pl.DataFrame(columns).with_columns(pl.lit(WORD).alias("event_type"))


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
    smooth = [sum(board.buckets[max(0, n - 2) : n + 1], type(board.total)()) for n in full]
    lines = [
        Line("suggested by Driftwood", x, [tally.share for tally in smooth]),
        Line("the three commonest words so far", x, [tally.common_share for tally in smooth], dashed=True),
    ]
    moments = [(float(at), f"version {name}") for at, name in board.swaps if name != "trending"]
    panel = Panel("the next word was among the three suggested", lines, percent=True, moments=moments)
    return draw(path, title, [panel], "words typed")
