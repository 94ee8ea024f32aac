"""Progress of a stream on stderr: a bar where a person looks on, a line every few seconds where a file does."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_LINE_S = 5.0


class StreamReport:
    """Shows how many of how many events are out. Use as a context."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._console = Console(stderr=True)
        self._live = self._console.is_terminal
        self._began = self._said = time.monotonic()
        columns = (
            TextColumn("publishing"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=self._console, disable=not self._live)
        self._task = self._bar.add_task("", total=total, rate="")

    def __enter__(self) -> StreamReport:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show(self, done: int, note: str = "") -> None:
        """``done`` of the total are published. Cheap enough for every few hundred events."""
        now = time.monotonic()
        rate = done / max(1e-9, now - self._began)
        text = f"{rate:,.0f} events/s" + (f"  {note}" if note else "")
        if self._live:
            self._bar.update(self._task, completed=done, rate=text)
        elif now - self._said >= _LINE_S:
            self._said = now
            print(f"published {done:,} of {self._total:,}  {text}", file=sys.stderr, flush=True)
