"""Whether the session log holds enough for a first model."""

from __future__ import annotations

from services.retrainer.recipe import learnable
from services.retrainer.training_window import count_sessions
from shared.core.events import EventRules
from shared.core.session_log_port import SessionLog

_EVENTS_PER_SESSION = 50
"""So many are read for each session that is needed, before more of the log is."""


class ColdStart:
    """``least`` sessions of two events or more, among the newest ``events`` of the log."""

    def __init__(self, log: SessionLog, rules: EventRules, least: int, events: int) -> None:
        self._log, self._rules, self._least, self._events = log, rules, least, events
        self._files: tuple[int, int] | None = None

    def enough(self) -> bool:
        """Asked of the log only where its files changed since the last answer. Raises Unavailable."""
        summary = self._log.summary()
        files = (summary.files, summary.bytes)
        if files == self._files or not summary.files:
            return False
        few = min(self._events, _EVENTS_PER_SESSION * self._least)
        for rows in sorted({few, self._events}):
            window = self._log.window(newest_events=rows)
            if count_sessions(*learnable(window, self._rules)) >= self._least:
                return True
        self._files = files
        return False
