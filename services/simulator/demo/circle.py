"""The whole circle on shoppers: their taste shifts, engagement falls, the retrainer notices, learns and swaps.

The demo changes only what the shoppers do. All that follows is the system's own doing, read from its journal.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from services.simulator.demo.client import RankingClient
from services.simulator.demo.measure import BUCKET_S, Board, Hits
from services.simulator.demo.view import per_cent
from shared.adapters.chart import Line, Panel, draw
from shared.core.errors import Unavailable

SETTINGS = {
    "TRAIN_MIN_SESSIONS": "1400",  # about 16,000 events: the first model's history
    "TRAIN_WIDTH": "64",
    "TRAIN_EPOCHS": "8",
    "TRAIN_BUDGET_S": "120",
    "SESSION_LOG_FLUSH_S": "1",
    "DRIFT_MIN_EVENTS": "600",
    "DRIFT_COOLDOWN_S": "10",
    "DRIFT_MIN_FALL": "0.05",
}
"""Of the stack: small numbers, so that minutes show what otherwise takes days."""

SHIFTED_RATE = 300.0
"""Events a second after the shift: there is little of the new taste to learn from at first."""

RECOVERED = 0.95
"""Of the former share: then the circle is closed."""

_ASK_S = 1.0
_LEAST_ACTIONS = 5


class Journal:
    """What the system notes of its models, as GET /v1/models tells it."""

    def __init__(self, http: str) -> None:
        self._client = RankingClient(http)
        self._known: set[str] = set()
        self._ask_at = 0.0
        self.notes: list[dict[str, Any]] = []
        """All so far, oldest first: kind, at (ms), details."""

    def news(self) -> list[dict[str, Any]]:
        """Notes since the last call, oldest first; asked once a second."""
        if time.monotonic() < self._ask_at:
            return []
        self._ask_at = time.monotonic() + _ASK_S
        try:
            events = json.loads(self._client.raw("/v1/models"))["events"]
        except Unavailable:
            return []
        fresh = [note for note in reversed(events) if note["id"] not in self._known]
        self._known |= {note["id"] for note in fresh}
        self.notes += fresh
        return fresh

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


def told(note: Mapping[str, Any]) -> str:
    """A note in words."""
    kind, details = note["kind"], note["details"]
    if kind == "alarm":
        before, after = per_cent(details["before"]), per_cent(details["after"])
        return f"alarm: of version {details['version']}, hits in the top 20 fell from {before} to {after}"
    if kind == "training":
        return f"training ({details.get('reason')}): {details.get('outcome')}, {details.get('train_s', 0):.0f} s"
    if kind == "gate":
        return f"gate: {details.get('decision')} ({_recalls(details)})"
    if kind == "swap":
        return f"swap: version {details['version']} is in service"
    return f"{kind}: {json.dumps(details)}"


def _recalls(gate: Mapping[str, Any]) -> str:
    """Recall@20 of all who were asked."""
    parts = []
    for name in ("challenger", "champion", "popularity"):
        asked = gate.get(name)
        if isinstance(asked, Mapping) and "recall20" in asked:
            parts.append(f"{name} {asked['recall20']:.3f}")
    return ", ".join(parts) + " Recall@20"


class Story:
    """What happened when, for the chart. Times are seconds since the board began."""

    def __init__(self, board: Board) -> None:
        self._whole = board.whole
        self._began_ms = time.time() * 1000 - self._whole.age() * 1000
        self.moments: list[tuple[float, str]] = []

    def mark(self, text: str) -> None:
        """Now."""
        self.moments.append((self._whole.age(), text))

    def mark_notes(self, notes: Sequence[Mapping[str, Any]]) -> None:
        """Alarms and swaps, when they were."""
        for note in notes:
            if note["kind"] in ("alarm", "swap", "rollback"):
                text = "alarm" if note["kind"] == "alarm" else f"version {note['details'].get('version')}"
                self.moments.append(((note["at"] - self._began_ms) / 1000, text))

    def draw(self, path: Path) -> Path:
        """The share of next actions in the top 20 over time, as PNG. Raises SettingsInvalid, OSError."""
        buckets = [(at, shares) for at, shares in self._whole.over_time() if shares.actions >= _LEAST_ACTIONS]
        x = [at + BUCKET_S / 2 for at, _ in buckets]
        lines = [
            Line("ranking held for the user", x, [shares.held_share for _, shares in buckets]),
            Line("trending", x, [shares.trending_share for _, shares in buckets]),
        ]
        panel = Panel("next action in the top 20", lines, percent=True, moments=self.moments)
        return draw(path, "Driftwood demo", [panel], "seconds")


def closed(before: Hits, now: Hits) -> bool:
    """Whether the share of late is again what it was."""
    recent = now.recent()
    return recent.actions >= 20 * _LEAST_ACTIONS and recent.held_share >= RECOVERED * before.total.held_share
