"""The demo from start to end: collect, train while the stream goes on, serve from the model, shift, recover, sum up."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console

from services.simulator.demo import circle
from services.simulator.demo.client import RankingClient
from services.simulator.demo.measure import Board, Hits
from services.simulator.demo.processes import DemoFailed, Stack, Training, environment_of_its_own
from services.simulator.demo.settings import DemoSettings
from services.simulator.demo.sources import Source
from services.simulator.demo.streamer import Freshness, Streamer
from services.simulator.demo.summary import Recovery, curl_lines, recovery_lines, summary
from services.simulator.demo.view import View, per_cent
from services.simulator.keep_up import keep_up
from shared.adapters.embedded import recognise
from shared.adapters.kafka import KafkaPublisher
from shared.adapters.kafka_reader import OffsetReader
from shared.adapters.settings import KafkaSettings
from shared.core.errors import SettingsInvalid

_TICK_S = 0.25
_LEAST_MEASURED = 0.25  # of the whole length with the model live, however long the training took
_COLLECTING_SHARE = 0.35
_SWAP_S = 30.0
_TRAINING_LIMIT_S = 600.0
_TOPIC_EVERY_S = 1.0
_CHART = Path(".run/demo.png")


class Stopped(Exception):
    """Somebody asked the demo to stop."""


class Demo:
    """One run in a folder of its own. ``run`` returns when the demo is over; ``close`` ends all that it started."""

    def __init__(self, source: Source, settings: DemoSettings, folder: Path, console: Console) -> None:
        plan = source.plan
        self._source, self._settings, self._folder, self._console = source, settings, folder, console
        self._history = settings.demo_history or plan.history
        self._seconds = settings.demo_seconds or plan.seconds
        self._stop = threading.Event()
        self._board = Board()
        self._began = time.monotonic()
        self._story = circle.Story(self._board)
        self._journal: circle.Journal | None = None
        self._view = View(console, self._board, lambda: self._seconds)
        self._environment = environment_of_its_own(folder) | {"MODEL_URI": str(folder / "models")}
        self._phases = 3 if plan.train_flags else 4
        if plan.train_flags:
            self._environment.setdefault("TRAIN_AUTO", "false")  # the demo trains its model itself
        else:
            self._environment = circle.SETTINGS | self._environment
        self._stack: Stack | None = None
        self._training: Training | None = None
        self._workers: list[Streamer | Freshness] = []
        self._closing: list[Any] = []
        self._offsets: OffsetReader | None = None
        self._topic_at, self._topic_ends = 0.0, 0
        self._kafka = KafkaSettings()
        self._http = ""
        self._ending = False

    def ask_to_stop(self) -> None:
        """For signal handlers."""
        self._stop.set()

    def run(self) -> None:
        """Raises DemoFailed, Stopped, Unavailable or LogUnreadable."""
        self._view.say(f"Driftwood demo on {self._source.title}")
        streamer = self._start()
        with self._view:
            self._collect(streamer)
            trained_on = self._train(streamer)
            self._measure(streamer)
            recovery = self._shift(streamer)
        for line in summary(self._board, trained_on, time.monotonic() - self._began):
            self._view.say(line)
        for line in recovery_lines(recovery) if recovery else ():
            self._view.say(line)
        self._draw()
        for line in curl_lines(self._http, self._board.sample_user):
            self._view.say(line)
        if not self._settings.demo_keep:
            self._view.say("\nThis system stops now. `make stack` keeps one running, `make demo DEMO_KEEP=1` this one.")
        if self._settings.demo_keep:
            self._keep()

    def close(self) -> None:
        """End the threads, the training and the stack; leaves no process behind."""
        for worker in self._workers:
            worker.halt.set()
        for worker in self._workers:
            worker.join(10.0)
        if self._training is not None:
            self._training.stop()
        for part in self._closing:
            part.close()
        if self._stack is not None:
            if self._stack.runs:
                self._view.say("stopping")
            self._ending = True
            self._stack.stop()

    def _start(self) -> Streamer:
        self._stack = Stack(self._environment, self._heard)
        ready = self._stack.ready(self._check_stop)
        self._http = ready["http"]
        self._kafka = recognise(KafkaSettings(kafka_bootstrap_servers=ready["kafka"]))
        self._view.say(f"the system is up: {self._http} (try /docs)")
        publisher = KafkaPublisher(self._kafka)
        limiter = keep_up(self._kafka, None)
        self._offsets = OffsetReader(self._kafka)
        self._journal = circle.Journal(self._http)
        self._closing += [publisher, limiter, self._offsets, self._journal]
        freshness = Freshness(self._board, RankingClient(self._http))
        topic = self._kafka.topic_interactions
        streamer = Streamer(self._source, publisher, topic, RankingClient(self._http), freshness, limiter)
        streamer.rate = self._source.plan.history_rate
        streamer.asking = streamer.rate <= _ASKING_RATE
        self._workers = [streamer, freshness]
        for worker in self._workers:
            worker.start()
        return streamer

    def _heard(self, line: str) -> None:
        """The stack's progress while it starts; later only what it says of accidents."""
        if self._http and self._console.is_terminal:
            self._board.notices.append(line)
        elif not self._ending:
            self._view.say(line)

    def _collect(self, streamer: Streamer) -> None:
        self._view.phase = f"1/{self._phases} streaming the first part"
        # Not longer than its share, so that a slow machine trains on less instead of taking more time.
        until = time.monotonic() + _COLLECTING_SHARE * self._seconds
        while self._board.events.count < self._history and not self._board.exhausted and time.monotonic() < until:
            self._view.detail = f"{self._board.events.count:,} of {self._history:,}"
            self._tick()

    def _train(self, streamer: Streamer) -> int:
        table = streamer.history_table()
        streamer.rate = self._settings.demo_rate or self._source.plan.rate
        streamer.asking = True
        self._board.hits = Hits()
        self._view.phase = f"2/{self._phases} training on them, while the stream goes on"
        if self._source.plan.train_flags:
            self._train_here(table)
        else:
            self._view.detail = "the retrainer trains its first model by itself"
            self._wait_for_model(None, _TRAINING_LIMIT_S)
        return table.height

    def _train_here(self, table: pl.DataFrame) -> None:
        data = self._folder / "history.parquet"
        table.write_parquet(data)
        self._view.say(f"training the first model on {table.height:,} events")
        flags = [*self._source.plan.train_flags, "--seed", str(self._settings.demo_seed)]
        flags += ["--checkpoints", str(self._folder / "checkpoints")]
        self._training = Training(str(data), self._environment["MODEL_URI"], flags, self._environment)
        while (result := self._training.result()) is None:
            if time.monotonic() - self._training.began > _TRAINING_LIMIT_S:
                raise DemoFailed(f"the training takes over {_TRAINING_LIMIT_S:.0f} s: {self._training.last_words}")
            self._view.detail = self._training.last_words
            self._tick()
        self._view.say(
            f"version {result['version']} after {time.monotonic() - self._training.began:.0f} s: on held-out sessions "
            f"Recall@20 {result['recall20']:.3f}, popularity {result['popularity_recall20']:.3f}"
        )
        self._view.detail = "waiting for the services to take it over"
        self._wait_for_model(result["version"], _SWAP_S)

    def _wait_for_model(self, version: str | None, seconds: float) -> None:
        """Until rankings come from this version; None: from any."""
        deadline = time.monotonic() + seconds
        while (live := self._board.model_version) is None or version not in (None, live):
            if time.monotonic() > deadline:
                name = f"version {version} is published, but" if version else "no model was trained:"
                raise DemoFailed(f"{name} no ranking came from it in {seconds:.0f} s")
            if self._board.exhausted:
                raise DemoFailed("the log ended before the model was live: a longer one, or a smaller DEMO_HISTORY")
            self._tick()

    def _measure(self, streamer: Streamer) -> None:
        self._board.hits = Hits()
        self._view.phase, self._view.detail = f"3/{self._phases} serving from the model", ""
        self._seconds = max(self._seconds, time.monotonic() - self._began + _LEAST_MEASURED * self._seconds)
        while time.monotonic() - self._began < self._seconds and not self._board.exhausted:
            self._tick()

    def _shift(self, streamer: Streamer) -> Recovery | None:
        """Other habits, and what becomes of it; None where the source cannot."""
        before, first = self._board.hits, self._board.model_version
        limit = self._settings.demo_shift_seconds
        if not limit or not self._source.shift():
            return None
        self._story.mark("taste shifts")
        self._view.say(f"now the shoppers' taste shifts; until now {per_cent(before.total.held_share)} were hits")
        self._view.phase = "4/4 taste has shifted"
        self._board.hits = fallen = Hits()
        streamer.rate = self._settings.demo_rate or circle.SHIFTED_RATE
        began, swapped = time.monotonic(), 0.0
        self._seconds = began - self._began + limit
        while time.monotonic() - began < limit and not circle.closed(before, self._board.hits):
            if not swapped and self._board.model_version != first:
                swapped = time.monotonic() - began
                self._board.hits = Hits()
            self._tick()
        recovery = Recovery(before, fallen, self._board.hits if swapped else None, swapped, time.monotonic() - began)
        self._board.hits = before
        return recovery

    def _draw(self) -> None:
        assert self._journal is not None
        self._story.mark_notes(self._journal.notes)
        try:
            self._view.say(f"  chart: {self._story.draw(_CHART)}")
        except (SettingsInvalid, OSError) as error:
            self._view.say(f"  no chart: {error}")

    def _tick(self) -> None:
        """Show, count the topic's rankings, and look whether all parts are well."""
        self._check_stop()
        assert self._stack is not None
        self._stack.check()
        if self._board.failure is not None:
            raise DemoFailed(f"the stream broke: {self._board.failure}") from self._board.failure
        self._count_topic()
        if self._journal is not None:
            for note in self._journal.news():
                self._view.say(circle.told(note))
        self._view.show()
        self._stop.wait(_TICK_S)

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise Stopped

    def _count_topic(self) -> None:
        assert self._offsets is not None
        if time.monotonic() < self._topic_at:
            return
        self._topic_at = time.monotonic() + _TOPIC_EVERY_S
        end = sum(self._offsets.end_offsets(self._kafka.topic_recommendations).values())
        if self._topic_ends:
            self._board.topic_rankings.add(max(0, end - self._topic_ends))
        self._topic_ends = end

    def _keep(self) -> None:
        self._view.say("\nStreaming on until Ctrl-C.")
        try:
            with self._view:
                while True:
                    self._tick()
        except Stopped:
            return


_ASKING_RATE = 1000.0
"""Above so many events a second there is no time to ask for rankings in between."""
