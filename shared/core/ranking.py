"""Rankings on the wire, and the internal message that says whose state changed."""

from __future__ import annotations

from typing import Annotated

import msgspec

STRATEGY_GRU = "gru"
STRATEGY_TRENDING = "trending"

Strategy = Annotated[
    str,
    msgspec.Meta(
        description="gru: by the model, from the user's state; trending: what is popular now",
        extra_json_schema={"enum": [STRATEGY_GRU, STRATEGY_TRENDING]},
    ),
]


class ScoredItem(msgspec.Struct, frozen=True, gc=False):
    """One recommended item. Scores compare within one ranking only."""

    item_id: str
    score: float


class Ranking(msgspec.Struct, frozen=True):
    """The value of the ``recommendations`` topic and the answer of the HTTP calls."""

    user_id: str | None
    items: list[ScoredItem]
    model_version: str | None
    strategy: Strategy
    as_of: int
    """Time of the last event that the ranking knows of, ms since the epoch; for trending, the time of the answer."""
    recommendation_id: str


class StateUpdate(msgspec.Struct, frozen=True, gc=False):
    """Users of one partition whose state changed in one batch, or who were forgotten."""

    users: list[str]
    forgotten: bool = False
    written_at: int = 0
    """When the states were in Redis, ms since the epoch."""
    arrived_at: int = 0
    """When the oldest event behind them reached the broker, ms since the epoch; 0: no event is."""


class Forget(msgspec.Struct, frozen=True, gc=False):
    """A user asked to be forgotten: nothing published below ``end_offsets`` may be used again."""

    user_id: str
    requested_at: int
    end_offsets: dict[int, int]
    """partition of the interactions topic -> offset"""


_ranking_encoder = msgspec.json.Encoder()
_update_encoder = msgspec.msgpack.Encoder()
_update_decoder = msgspec.msgpack.Decoder(StateUpdate)


def encode_ranking(ranking: Ranking) -> bytes:
    """JSON."""
    return _ranking_encoder.encode(ranking)


def encode_update(update: StateUpdate) -> bytes:
    """MessagePack: internal, and read by our own services only."""
    return _update_encoder.encode(update)


def decode_update(value: bytes) -> StateUpdate:
    """Raises msgspec.DecodeError for a foreign value."""
    return _update_decoder.decode(value)
