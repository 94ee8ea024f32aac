"""What the demo shows: a table that changes in a terminal, a line every few seconds anywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from services.simulator.demo.measure import Board, percentile, spark

_LINE_S = 3.0
_CURVE_POINTS = 40


def freshness_text(values: list[float]) -> str:
    """Median and 99th percentile, in milliseconds."""
    if not values:
        return "not measured yet"
    return f"p50 {percentile(values, 0.5):.0f} ms, p99 {percentile(values, 0.99):.0f} ms"


def per_cent(share: float) -> str:
    """A share for people."""
    return f"{share:.1%}"


class View:
    """Use as a context; ``show`` a few times a second, ``say`` for what stays."""

    def __init__(self, console: Console, board: Board, total_s: Callable[[], float]) -> None:
        self._console = console
        self._board = board
        self._total_s = total_s
        self._began = self._said = time.monotonic()
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self.phase = ""
        self.detail = ""

    def __enter__(self) -> View:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, line: str) -> None:
        """A line that stays, above the table."""
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def show(self) -> None:
        """The present state of the board."""
        now = time.monotonic()
        events, http = self._board.events.per_second(), self._board.http_rankings.per_second()
        topic = self._board.topic_rankings.per_second()
        if self._live is not None:
            self._live.update(self._table(now - self._began, events, http, topic), refresh=True)
        elif now - self._said >= _LINE_S:
            self._said = now
            self.say(self._line(now - self._began, events, http + topic))

    def _line(self, elapsed: float, events: float, rankings: float) -> str:
        board, recent = self._board, self._board.hits.recent()
        parts = [f"{elapsed:4.0f} s", self.phase, f"{events:,.0f} events/s", f"{rankings:,.0f} rankings/s"]
        if self.detail:
            parts.append(self.detail)
        if recent.actions:
            parts.append(f"next action in top 20: ours {per_cent(recent.held_share)}")
            parts[-1] += f", trending {per_cent(recent.trending_share)}"
        if board.freshness_ms:
            parts.append(f"freshness {freshness_text(board.freshness_ms)}")
        parts.append(f"model {board.model_version or 'none'}")
        return "  ".join(parts)

    def _table(self, elapsed: float, events: float, http: float, topic: float) -> RenderableType:
        board = self._board
        total, recent, curve = board.hits.total, board.hits.recent(), board.hits.curve(_CURVE_POINTS)
        rows = Table.grid(padding=(0, 2))
        rows.add_row("phase", Text(f"{self.phase}  {self.detail}", style="bold"))
        rows.add_row("time", f"{elapsed:.0f} of about {self._total_s():.0f} s")
        rows.add_row("events", f"{events:,.0f} a second   {board.events.count:,} in all")
        rows.add_row("rankings", f"{http:,.0f} a second over HTTP, {topic:,.0f} a second to the topic")
        rows.add_row("freshness", f"{freshness_text(board.freshness_ms)}   event published until ranking knows it")
        rows.add_row("model", f"version {board.model_version}" if board.model_version else "none yet: trending")
        shares = Table("next action in the top 20", "recent", "all", "curve", box=None, padding=(0, 2))
        ours, trending = [c.held_share for c in curve], [c.trending_share for c in curve]
        held_recent, held_total = per_cent(recent.held_share), per_cent(total.held_share)
        shares.add_row("ranking held for the user", held_recent, held_total, spark(ours), style="green")
        shares.add_row("trending", per_cent(recent.trending_share), per_cent(total.trending_share), spark(trending))
        return Group(rows, Text(), shares, *(Text(notice, style="yellow") for notice in board.notices))
