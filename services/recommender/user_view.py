"""What is known of one user, in words that tell why the ranking is what it is: GET /v1/users/{user_id}."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from services.recommender.serving import Serving
from shared.core.errors import DriftwoodError, StateDamaged
from shared.core.ports import StateStore
from shared.core.ranking import STRATEGY_GRU, STRATEGY_TRENDING
from shared.core.registry_port import ModelRegistry
from shared.core.state import UserState, decode_state

WHY = {
    "unknown_user": "Nothing is stored for this user: no event of theirs was taken in yet, or the state expired.",
    "no_events": "The user was forgotten, or has done nothing yet that advances the state.",
    "state_damaged": "The stored state cannot be read; it is made anew with the user's next event.",
    "no_champion": "No model is in service yet, so everybody gets what is trending.",
    "no_known_item": "The model knows none of the user's recent items: they came after it was trained.",
}


class Why(msgspec.Struct):
    """Why there is no ranking by the model: a code, and the same in words."""

    code: str
    text: str


class UserView(msgspec.Struct):
    """What is known of a user, without the hidden state itself."""

    user_id: str
    known: bool
    recent_items: list[str]
    """Oldest first."""
    events: int
    """Applied so far."""
    last_event_at: int | None
    """By the event's own time, ms since the epoch."""
    state_age_ms: int | None
    """Since then."""
    state_model_version: str | None
    """Of the model that made the hidden state; None: there is none, or that model is not in the registry."""
    state_is_current: bool
    """The hidden state is that of the model in service; else it is made anew from the recent items when needed."""
    dismissed: int
    """Items that are not offered to the user at present."""
    strategy: str
    """Of the ranking that the user gets now."""
    model_version: str | None
    """Of that ranking."""
    why: Why | None
    """Where the strategy is trending: why."""


class UserViews:
    """Reads one state and explains it."""

    def __init__(
        self,
        store: StateStore,
        serving: Callable[[], Serving | None],
        registry: ModelRegistry,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._serving, self._registry, self._clock = store, serving, registry, clock

    def describe(self, user_id: str) -> UserView:
        """Blocking. Raises Unavailable."""
        value = self._store.read([user_id])[0]
        serving = self._serving()
        try:
            state = decode_state(value)
            recent, dismissed = state.recent_items(), state.dismissed_items()
            why = _why(value, state, recent, serving)
        except StateDamaged:
            state, recent, dismissed, why = UserState(), [], [], "state_damaged"
        now = self._clock()
        by_model = why is None
        return UserView(
            user_id=user_id,
            known=value is not None,
            recent_items=recent,
            events=state.events,
            last_event_at=state.last_ts or None,
            state_age_ms=max(0, int(1000 * now) - state.last_ts) if state.last_ts else None,
            state_model_version=self._version(state.fingerprint, serving),
            state_is_current=bool(serving and state.fingerprint == serving.model.fingerprint),
            dismissed=sum(until > now for _, until in dismissed),
            strategy=STRATEGY_GRU if by_model else STRATEGY_TRENDING,
            model_version=serving.model.version if serving is not None and by_model else None,
            why=Why(why, WHY[why]) if why is not None else None,
        )

    def _version(self, fingerprint: int, serving: Serving | None) -> str | None:
        if not fingerprint:
            return None
        if serving is not None and serving.model.fingerprint == fingerprint:
            return serving.model.version
        try:
            return next((m.version for m in self._registry.versions() if m.fingerprint == fingerprint), None)
        except DriftwoodError:
            return None  # the rest of the answer does not need it


def _why(value: bytes | None, state: UserState, recent: list[str], serving: Serving | None) -> str | None:
    """As the ranking decides (batch.py)."""
    if value is None:
        return "unknown_user"
    if not state.events:
        return "no_events"
    if serving is None:
        return "no_champion"
    model = serving.model
    has_hidden = state.fingerprint == model.fingerprint and len(state.hidden) == 2 * model.width and any(state.hidden)
    return None if has_hidden or model.known(recent) else "no_known_item"
