"""What the console page is told, as one JSON value: GET /v1/console."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from services.recommender.console.engagement import KEEP_S, EngagementHistory, Series
from services.recommender.console.live import Live, Now, Sample
from services.recommender.console.watch import JournalWatch, PresenceWatch, StreamWatch, Turns
from services.recommender.params import Problem, Refused
from services.recommender.recent import RecentUpdates
from services.recommender.serving import Serving

WINDOWS_S = {900: 5, 3600: 20, KEEP_S: 120}
"""What can be looked at: seconds -> seconds of a point. 180 points each, as many as a chart can show."""
DEFAULT_WINDOW_S = 900
_FRESH_S = 0.5
"""All who ask within so long get the same bytes."""


class Engagement(msgspec.Struct):
    """Outcomes from ``from_ms`` (since the epoch) on, in ``steps`` of ``step_s``. complete: False while the last hours
    are still being read, as after a start."""

    from_ms: int
    step_s: int
    steps: int
    series: list[Series]
    complete: bool


class LastMinute(msgspec.Struct):
    """Outcomes of the last minute, of all versions, whatever the window: how many, and hits among the first 20."""

    count: int
    hits: int


class Mark(msgspec.Struct):
    """Something that happened to the models: a note of the registry's journal."""

    id: str
    at: int
    kind: str
    details: Mapping[str, Any]


class View(msgspec.Struct):
    """champion: what the registry points to; loaded: what this process ranks with; problems: what is not seen now, and
    why; models_key: another one each time that GET /v1/models has news; users: some who acted just now."""

    at: int
    now: Now
    history: list[Sample]
    engagement: Engagement
    last_minute: LastMinute
    marks: list[Mark]
    champion: str | None
    loaded: str | None
    catalogue: int
    models_key: str
    problems: dict[str, str]
    users: list[str]


@dataclass(frozen=True)
class Watches:
    """Who looks at what."""

    stream: StreamWatch
    presence: PresenceWatch
    journal: JournalWatch


class Console:
    """Begins to look with ``start``; ``encoded`` answers from memory, in any thread, without asking anyone."""

    def __init__(
        self,
        watches: Watches,
        live: Live,
        history: EngagementHistory,
        recent: RecentUpdates,
        serving: Callable[[], Serving | None],
        model_problem: Callable[[], str | None],
        turn_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._watches, self._live, self._history, self._recent = watches, live, history, recent
        self._serving, self._model_problem, self._clock = serving, model_problem, clock
        self._turns = {
            "kafka": Turns("kafka", watches.stream.step, watches.stream.failed, turn_s),
            "redis": Turns("redis", watches.presence.step, watches.presence.failed, turn_s),
            "registry": Turns("registry", watches.journal.step, lambda: None, 2 * turn_s),
        }
        self._made: dict[int, tuple[float, bytes]] = {}

    def start(self) -> None:
        """Begin to look."""
        for turns in self._turns.values():
            turns.start()

    def stop(self) -> None:
        """Look no more."""
        for turns in self._turns.values():
            turns.stop()
        self._watches.stream.close()

    def look(self) -> None:
        """Once, at everything: for those who do not start the threads."""
        for turns in self._turns.values():
            turns.turn()

    def encoded(self, window_s: int) -> bytes:
        """The JSON of View. window_s: one of WINDOWS_S."""
        held = self._made.get(window_s)
        now = self._clock()
        if held is None or not 0 <= now - held[0] < _FRESH_S:
            held = self._made[window_s] = (now, msgspec.json.encode(self.view(window_s)))
        return held[1]

    def view(self, window_s: int) -> View:
        """What is known now."""
        now_ms, step_s = int(1000 * self._clock()), WINDOWS_S[window_s]
        steps = window_s // step_s
        from_ms = (now_ms // (1000 * step_s) - steps + 1) * 1000 * step_s
        journal, serving = self._watches.journal, self._serving()
        loaded = serving.model.version if serving is not None else None
        problems = {name: turns.problem for name, turns in self._turns.items() if turns.problem is not None}
        if trouble := self._model_problem():
            problems["model"] = trouble
        newest = journal.notes[0].id if journal.notes else ""
        series, complete = self._history.series(from_ms, step_s, steps), not self._watches.stream.reads
        minute = self._history.last(now_ms, 60)
        return View(
            now_ms,
            self._live.now,
            self._live.history(),
            Engagement(from_ms, step_s, steps, series, complete),
            LastMinute(minute.count, minute.hits),
            [Mark(n.id, n.at, n.kind, n.details) for n in _within(journal.notes, from_ms)],
            journal.champion,
            loaded,
            len(serving.model.items) if serving is not None else 0,
            f"{journal.champion}/{loaded}/{newest}/{problems.get('model', '')}",
            problems,
            self._recent.users(),
        )


def _within(notes: Sequence[Any], from_ms: int) -> list[Any]:
    return [note for note in reversed(notes) if note.at >= from_ms]


def window_of(query: Mapping[str, str]) -> int:
    """The window asked for. Raises Refused."""
    given = query.get("window")
    if given is None:
        return DEFAULT_WINDOW_S
    if not given.isascii() or not given.isdigit() or int(given[:9]) not in WINDOWS_S:
        raise Refused(Problem("window", f"must be one of {', '.join(map(str, WINDOWS_S))}, is {given!r:.40}"))
    return int(given[:9])
