"""A question for a ranking, and its answer."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from shared.core.errors import DriftwoodError


@dataclass(slots=True)
class Query:
    """Whose ranking: a user's by ``user_id``, or, where that is None, of an anonymous session of ``items``."""

    user_id: str | None
    k: int
    items: Sequence[str] = ()
    exclude: Sequence[str] = ()
    exclude_seen: bool = False
    progress: tuple[int, int, bytes] = (0, 0, b"")
    """Of a long session: fingerprint of the model, known items taken so far, the hidden state they led to."""


class Answer(NamedTuple):
    """A ranking. ``names`` are item ids as JSON; ``known``: there is a state with events in it."""

    user_id: str | None
    names: Sequence[bytes]
    scores: Sequence[float]
    model_version: str | None
    strategy: str
    as_of: int
    known: bool


Outcome = Answer | DriftwoodError | None


class Ids:
    """Recommendation ids: no two alike, over all processes and restarts, at the cost of a counter.

    Each answer has its own, also one whose ranking was in memory: it names what was shown, so that an interaction
    can say which showing it followed.
    """

    def __init__(self) -> None:
        self._prefix = secrets.token_hex(8)
        self._next = itertools.count().__next__

    def __call__(self) -> str:
        return f"{self._prefix}-{self._next():x}"


def encode_answer(answer: Answer, recommendation_id: str) -> bytes:
    """The JSON of shared.core.ranking.Ranking, put together from item ids that are JSON already."""
    pairs = zip(answer.names, answer.scores, strict=True)
    return b'{"user_id":%b,"items":[%b],"model_version":%b,"strategy":"%b","as_of":%d,"recommendation_id":"%b"}' % (
        msgspec.json.encode(answer.user_id),
        b",".join([b'{"item_id":%b,"score":%a}' % pair for pair in pairs]),
        msgspec.json.encode(answer.model_version),
        answer.strategy.encode(),
        answer.as_of,
        recommendation_id.encode(),
    )
