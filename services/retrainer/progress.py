"""Progress on stderr: a bar where a person looks on, a line every few seconds where a file does."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from shared.model.train import Progress

REFRESH_S = 0.1
LINE_S = 5.0


class ProgressReport:
    """Implements services.retrainer.recipe.Reporter."""

    def __init__(self, console: Console | None = None, quiet: bool = False) -> None:
        self._console = console or Console(stderr=True, quiet=quiet)
        self._live = self._console.is_terminal
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
        )
        self._bars = Bars(*columns, console=self._console, transient=True, disable=not self._live)
        self._task: tuple[str, int] | None = None
        self._id = self._bars.add_task("", total=1, note="", visible=False)
        self._shown = 0.0

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bars.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        self._console.print(text, highlight=False, soft_wrap=True)

    def training(self, progress: Progress) -> None:
        """Rate in (input, target) pairs a second of this epoch."""
        ended = progress.events == progress.total_events
        rate = progress.epoch_events / progress.seconds if progress.seconds else 0.0
        note = f"loss {progress.loss:.3f}  {rate:,.0f} events/s"
        self._show(f"epoch {progress.epoch}/{progress.epochs}", progress.events, progress.total_events, note, ended)

    def ranking(self, done: int, total: int) -> None:
        """Events ranked."""
        self._show("evaluating", done, total, "", done == total)

    def _show(self, what: str, done: int, total: int, note: str, ended: bool) -> None:
        now = time.monotonic()
        if not ended and now - self._shown < (REFRESH_S if self._live else LINE_S):
            return
        self._shown = now
        if self._live:
            self._bars.reset(self._id, start=False) if self._task != (what.split()[0], total) else None
            self._bars.start_task(self._id)
            self._task = (what.split()[0], total)
            self._bars.update(self._id, description=what, completed=done, total=total, note=note, visible=not ended)
        else:
            self.say(f"{what}: {done:,} of {total:,}  {note}".rstrip())
