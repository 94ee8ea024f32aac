"""Who is asked about: a user or an anonymous session, their state, and what they are not to be offered."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from services.recommender.cache import Entry
from services.recommender.metrics import RecommenderMetrics
from services.recommender.queries import Query
from shared.core.errors import StateDamaged
from shared.core.state import UserState, decode_state
from shared.model.inference import InferenceModel

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Subject:
    """A user or an anonymous session, however many queries of the batch are about it."""

    value: bytes | None = None
    entry: Entry | None = None
    state: UserState | None = None
    needed: int = 0
    hidden: bytes = b""
    ranking: tuple[np.ndarray, np.ndarray] | None = None
    """(indexes, scores): the entry's and the new items, merged."""
    steps: Sequence[int] = field(default_factory=list)


@dataclass(slots=True)
class Ask:
    """One query. ``out``: indexes of the items that it leaves out."""

    query: Query
    subject: Subject | None
    out: Sequence[int] = ()
    unfinished: bool = False


class States:
    """Reads what a ranking needs from users' states."""

    def __init__(self, metrics: RecommenderMetrics, clock: Callable[[], float]) -> None:
        self._metrics = metrics
        self._clock = clock

    def of(self, user_id: str, subject: Subject) -> UserState:
        """The user's state; an empty one where the stored value cannot be read."""
        if subject.state is None:
            try:
                subject.state = decode_state(subject.value)
                subject.state.recent_items()
                subject.state.dismissed_items()
            except StateDamaged as error:
                self._metrics.damaged.inc()
                log.error("the stored state cannot be read: %s", error, extra={"user_id": user_id})
                subject.state = UserState()
        return subject.state

    def has_hidden(self, model: InferenceModel, query: Query, subject: Subject) -> bool:
        """Whether the state that the subject's entry was made of is at hand."""
        if not subject.hidden and query.user_id is not None:
            state = self.of(query.user_id, subject)
            if state.fingerprint == model.fingerprint and len(state.hidden) == 2 * model.width:
                subject.hidden = state.hidden
        return bool(subject.hidden)

    def left_out(self, query: Query, subject: Subject) -> list[str]:
        """What the query does not want."""
        seen: Sequence[str] = ()
        if query.exclude_seen:
            seen = query.items if query.user_id is None else self.of(query.user_id, subject).recent_items()
        return [*query.exclude, *seen]

    def dismissed(self, query: Query, subject: Subject) -> list[str]:
        """What the user dismissed and is not to be offered yet."""
        if query.user_id is None or subject.value is None:
            return []
        entry = subject.entry
        items = entry.dismissed if entry is not None else self.of(query.user_id, subject).dismissed_items()
        if not items:
            return []
        now_s = self._clock()
        return [item for item, until in items if until > now_s]
