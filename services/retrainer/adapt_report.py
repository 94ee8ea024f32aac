"""What a comparison of policies shows: bars while it runs, a table over time, a chart."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from services.retrainer.adapt_policies import HOUR_MS
from services.retrainer.adapt_replay import Curve, Outcome
from services.retrainer.adapt_stream import Ints
from shared.adapters.chart import Line, Panel, draw

_LINE_S = 10.0
_SMOOTH_H = 6
_MAX_ROWS = 40
_LEAST = 30
"""Tested events below which an hour or a day says nothing"""


class Bars:
    """A bar for each policy where a person looks on, a line every few seconds elsewhere."""

    def __init__(self, names: tuple[str, ...], begin: int, total: int, console: Console) -> None:
        self._begin, self._total, self._console = begin, total, console
        columns = TextColumn("{task.description:<8}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
        self._bars = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._tasks: dict[str, TaskID] = {name: self._bars.add_task(name, total=total - begin) for name in names}
        self._said = time.monotonic()

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bars.stop()

    def show(self, done: Mapping[str, int]) -> None:
        """name -> number of the next event."""
        for name, task in self._tasks.items():
            self._bars.update(task, completed=max(0, done[name] - self._begin))
        if not self._console.is_terminal and time.monotonic() - self._said >= _LINE_S:
            self._said = time.monotonic()
            shares = {name: max(0, done[name] - self._begin) / (self._total - self._begin) for name in self._tasks}
            text = "  ".join(f"{name} {share:.0%}" for name, share in shares.items())
            self._console.print(f"replaying: {text}", highlight=False)


def over_time(outcomes: Mapping[str, Outcome]) -> Table:
    """Recall@20 / MRR@20 of each policy by day (or by as many days as give a table of at most 40 rows)."""
    hours = max(len(outcome.curve.tested) for outcome in outcomes.values())
    days = max(1, -(-hours // (24 * _MAX_ROWS)))
    table = Table(
        "day", "tested", *outcomes, box=None, padding=(0, 2), title="Recall@20 and MRR@20", title_justify="left"
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for start in range(0, hours, 24 * days):
        part = slice(start, start + 24 * days)
        tested = next(iter(outcomes.values())).curve.tested[part].sum()
        if tested >= _LEAST:
            cells = [_cell(outcome.curve, part) for outcome in outcomes.values()]
            table.add_row(f"{start // 24 + 1}", f"{tested:,.0f}", *cells)
    return table


def totals(outcomes: Mapping[str, Outcome]) -> Table:
    """One row for each policy."""
    heads = ("policy", "Recall@20", "MRR@20", "no fold-in", "MRR", "trainings", "train s")
    table = Table(*heads, box=None, padding=(0, 2))
    for column in table.columns[1:]:
        column.justify = "right"
    for name, outcome in outcomes.items():
        found = outcome.summary()
        plain = f"{found['recall20_without_fold_in']:.4f}", f"{found['mrr20_without_fold_in']:.4f}"
        means = f"{found['recall20']:.4f}", f"{found['mrr20']:.4f}"
        table.add_row(name, *means, *plain, f"{found['trainings']:,}", f"{found['train_s']:,.1f}")
    return table


def draw_outcomes(path: Path, title: str, outcomes: Mapping[str, Outcome]) -> Path:
    """Recall and MRR over the days, the trainings as ticks below. Raises SettingsInvalid, OSError."""

    def lines(pick: Callable[[Curve], Ints], with_marks: bool) -> list[Line]:
        found = []
        for name, outcome in outcomes.items():
            y = _smooth(pick(outcome.curve), outcome.curve.tested)
            marks = [(at - outcome.began) / HOUR_MS / 24 for at, _ in outcome.trainings] if with_marks else []
            found.append(Line(_label(name, outcome), (np.arange(len(y)) / 24).tolist(), y.tolist(), marks))
        return found

    panels = [
        Panel(f"Recall@20, {_SMOOTH_H} hours together; ticks: trainings", lines(lambda c: c.hits, True), percent=True),
        Panel("MRR@20", lines(lambda c: c.reciprocal, False)),
        Panel("Recall@20 without folding in new items", lines(lambda c: c.plain_hits, False), percent=True),
    ]
    return draw(path, title, panels, "days since the first model")


def _label(name: str, outcome: Outcome) -> str:
    found = outcome.summary()
    count = int(found["trainings"])
    return f"{name}: {count} training{'s' if count > 1 else ''}, {found['train_s']:.0f} s"


def _cell(curve: Curve, part: slice) -> str:
    count = max(1.0, curve.tested[part].sum())
    return f"{curve.hits[part].sum() / count:.3f} {curve.reciprocal[part].sum() / count:.3f}"


def _smooth(sums: Ints, tested: Ints) -> Ints:
    """(hours,) means over the last hours together; nan where too little was tested."""
    kernel = np.ones(_SMOOTH_H)
    size = len(tested)
    counts = np.convolve(tested, kernel)[:size]
    return np.where(counts >= _LEAST, np.convolve(sums, kernel)[:size] / np.maximum(counts, 1), np.nan)
