"""Interactions on the wire: what a producer may send, and why a value is refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import msgspec

from shared.core.errors import InvalidEvent

MAX_ID_BYTES = 256
"""Longest user, item, event, session or recommendation id, in bytes of UTF-8."""

MIN_TS_MS = 100_000_000_000
"""Smallest believable time in milliseconds (March 1973). Seconds since the epoch stay below it until the year 5138."""

MAX_TS_MS = 253_402_300_799_999
"""The end of the year 9999: largest time that may be sent, however tolerant EVENT_MAX_FUTURE_S is."""


# For schemas alone: what the decoder checks by itself (``check``), with better reasons than msgspec gives.
Id = Annotated[
    str,
    msgspec.Meta(
        description=f"1 to {MAX_ID_BYTES} bytes of UTF-8",
        extra_json_schema={"minLength": 1, "maxLength": MAX_ID_BYTES},
    ),
]
TimeMs = Annotated[
    int,
    msgspec.Meta(
        description="ms since the epoch; at most a day ahead (EVENT_MAX_FUTURE_S)",
        extra_json_schema={"minimum": MIN_TS_MS, "maximum": MAX_TS_MS},
    ),
]


class Interaction(msgspec.Struct, frozen=True, gc=False):
    """One action of one user on one item; ``ts`` is in milliseconds since the epoch. Unknown fields are ignored."""

    user_id: Id
    item_id: Id
    event_type: Id
    ts: TimeMs
    event_id: Id | None = None
    session_id: Id | None = None
    recommendation_id: Id | None = None


@dataclass(frozen=True)
class EventRules:
    """Limits that a deployment may set."""

    max_bytes: int = 65536
    max_future_ms: int = 86_400_000
    ignored_types: frozenset[str] = field(default_factory=lambda: frozenset({"impression"}))
    advancing_types: frozenset[str] = frozenset()
    dismiss_types: frozenset[str] = field(default_factory=lambda: frozenset({"dismiss"}))
    impression_types: frozenset[str] = field(default_factory=lambda: frozenset({"impression"}))

    def advances(self, event_type: str) -> bool:
        """Whether an event of this type moves the user's hidden state. A dismissal never does."""
        if event_type in self.dismiss_types:
            return False
        if self.advancing_types:
            return event_type in self.advancing_types
        return event_type not in self.ignored_types


_decoder = msgspec.json.Decoder(Interaction, strict=True)
_OPTIONAL_IDS = ("event_id", "session_id", "recommendation_id")


def decode(value: bytes | None, now_ms: int, rules: EventRules) -> Interaction:
    """The interaction in a Kafka value.

    Raises InvalidEvent, whose text names the field, for whatever breaks the contract.
    """
    if value is None:
        raise InvalidEvent("the value is null")
    if len(value) > rules.max_bytes:
        raise InvalidEvent(f"the value has {len(value)} bytes, more than EVENT_MAX_BYTES={rules.max_bytes}")
    try:
        event = _decoder.decode(value)
    except msgspec.ValidationError as error:
        raise _named(error) from error
    except msgspec.DecodeError as error:
        raise InvalidEvent(f"not JSON: {error}") from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise InvalidEvent(f"not UTF-8 JSON: {error}") from error
    check(event, now_ms, rules)
    return event


def check(event: Interaction, now_ms: int, rules: EventRules) -> None:
    """Raise InvalidEvent, naming the field, where a well-typed event breaks a limit."""
    # Most ids are short: 64 characters cannot exceed 256 bytes, so the exact count is rarely needed.
    if not 0 < len(event.user_id) <= 64:
        _check_id("user_id", event.user_id)
    if not 0 < len(event.item_id) <= 64:
        _check_id("item_id", event.item_id)
    if not 0 < len(event.event_type) <= 64:
        _check_id("event_type", event.event_type)
    if event.event_id is not None or event.session_id is not None or event.recommendation_id is not None:
        for name in _OPTIONAL_IDS:
            text = getattr(event, name)
            if text is not None:
                _check_id(name, text)
    if event.ts < MIN_TS_MS:
        raise InvalidEvent(f"{event.ts} is too small for milliseconds since the epoch (seconds?)", "ts")
    if event.ts > now_ms + rules.max_future_ms or event.ts > MAX_TS_MS:
        raise InvalidEvent(
            f"{event.ts} lies more than EVENT_MAX_FUTURE_S={rules.max_future_ms // 1000} s in the future", "ts"
        )


def _check_id(name: str, text: str) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidEvent("not encodable as UTF-8 (a lone surrogate)", name) from error
    if not 1 <= size <= MAX_ID_BYTES:
        raise InvalidEvent(f"has {size} bytes of UTF-8, must have 1 to {MAX_ID_BYTES}", name)


def _named(error: msgspec.ValidationError) -> InvalidEvent:
    """msgspec says "Expected `str`, got `int` - at `$.user_id`": turn that into reason and field."""
    text, _, path = str(error).partition(" - at `$")
    field_name = path.rstrip("`").lstrip(".")
    if not field_name and "missing required field" in text:
        field_name = text.rsplit("`", 2)[-2]
        text = "missing"
    return InvalidEvent(text, field_name)


def encode(event: Interaction) -> bytes:
    """The JSON value of an interaction, optional fields left out where absent."""
    return _encoder.encode({name: value for name in _FIELDS if (value := getattr(event, name)) is not None})


_encoder = msgspec.json.Encoder()
_FIELDS = Interaction.__struct_fields__
