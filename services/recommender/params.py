"""What callers send, checked: every refusal names the field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, NamedTuple
from urllib.parse import parse_qsl, unquote_to_bytes

import msgspec

from services.recommender.queries import Query
from shared.core.errors import InvalidEvent
from shared.core.events import MAX_ID_BYTES, EventRules, Id, decode

MAX_K = 1000
MAX_ITEMS = 1000
"""In one anonymous session, in one list of items to leave out."""
MAX_EVENTS = 1000
DEFAULT_K = 20
TRAFFIC = "traffic"

USERS = b"/v1/users/"
RECOMMENDATIONS = b"/recommendations"

_FLAGS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


class Problem(NamedTuple):
    """One thing wrong with a request; ``at`` counts from 0 where it is about one of a list."""

    field: str
    reason: str
    at: int | None = None


class Refused(Exception):
    """The request cannot be served: 422."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__("; ".join(f"{p.field}: {p.reason}" for p in problems))
        self.problems = problems


def user_of(raw: bytes) -> str:
    """The user id in a part of a path, as it was sent: percent-encoded, possibly with slashes."""
    try:
        return checked_id("user_id", unquote_to_bytes(raw).decode())
    except UnicodeDecodeError as error:
        raise Refused(Problem("user_id", f"not UTF-8: {error}")) from error


def asks_for_traffic(query: Mapping[str, str]) -> bool:
    """Of /readyz: whether it is asked for the sake of traffic alone (``?for=traffic``). Raises Refused."""
    given = query.get("for")
    if given not in (None, TRAFFIC):
        raise Refused(Problem("for", f"must be {TRAFFIC!r} or left out, is {given!r:.40}"))
    return given is not None


def checked_id(name: str, text: str) -> str:
    """The id itself, or Refused."""
    if 0 < len(text) <= MAX_ID_BYTES // 4:
        return text
    size = len(text.encode())
    if not 1 <= size <= MAX_ID_BYTES:
        raise Refused(Problem(name, f"has {size} bytes of UTF-8, must have 1 to {MAX_ID_BYTES}"))
    return text


def user_query(raw_user: bytes, query_string: bytes) -> Query:
    """The question of ``GET /v1/users/{user_id}/recommendations``."""
    user_id = user_of(raw_user)
    if not query_string:
        return Query(user_id, DEFAULT_K)
    k, exclude, exclude_seen = DEFAULT_K, [], False
    for name, value in parse_qsl(query_string.decode("latin-1"), keep_blank_values=True):
        if name == "k":
            k = _checked_k(int(value) if value.isascii() and value.isdigit() and len(value) < 10 else value)
        elif name == "exclude":
            exclude += [item for item in value.split(",") if item]
        elif name == "exclude_seen":
            exclude_seen = _flag(name, value)
    return Query(user_id, k, (), _few("exclude", exclude), exclude_seen)


def _checked_k(k: int | str) -> int:
    if isinstance(k, str) or not 1 <= k <= MAX_K:
        raise Refused(Problem("k", f"must be a whole number from 1 to {MAX_K}, is {k!r:.40}"))
    return k


def _flag(name: str, value: str) -> bool:
    try:
        return _FLAGS[value.lower()]
    except KeyError:
        raise Refused(Problem(name, f"must be true or false, is {value!r:.40}")) from None


def _few(name: str, items: Sequence[str]) -> Sequence[str]:
    if len(items) > MAX_ITEMS:
        raise Refused(Problem(name, f"has {len(items)} ids, at most {MAX_ITEMS} are allowed"))
    return items


_AT_MOST = msgspec.Meta(extra_json_schema={"maxItems": MAX_ITEMS})
"""For the description alone: checked by ``session_query``."""


class SessionRequest(msgspec.Struct, frozen=True):
    """An anonymous session: ``items`` in the order of the actions. Nothing of it is stored."""

    items: Annotated[list[Id], _AT_MOST]
    k: Annotated[int, msgspec.Meta(extra_json_schema={"minimum": 1, "maximum": MAX_K})] = DEFAULT_K
    exclude: Annotated[list[str], _AT_MOST] = []
    exclude_seen: bool = False


_session_decoder = msgspec.json.Decoder(SessionRequest)
_events_decoder = msgspec.json.Decoder(list[msgspec.Raw])


def session_query(body: bytes) -> Query:
    """The question of ``POST /v1/recommendations``."""
    try:
        asked = _session_decoder.decode(body)
    except msgspec.ValidationError as error:
        raise Refused(_named(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(Problem("", f"not JSON: {error}")) from error
    _few("items", asked.items)
    for at, item in enumerate(asked.items):
        checked_id(f"items[{at}]", item)
    return Query(None, _checked_k(asked.k), asked.items, _few("exclude", asked.exclude), asked.exclude_seen)


def _named(error: msgspec.ValidationError) -> Problem:
    """msgspec says "Expected `int`, got `str` - at `$.k`": turn that into field and reason."""
    text, _, path = str(error).partition(" - at `$")
    field = path.rstrip("`").lstrip(".")
    if not field and "missing required field" in text:
        return Problem(text.rsplit("`", 2)[-2], "missing")
    return Problem(field, text)


def events_of(body: bytes, now_ms: int, rules: EventRules) -> list[tuple[str, bytes]]:
    """(user id, JSON) of each interaction in the body: one, or a list. Refused names every bad one."""
    raw = [body]
    if body.lstrip()[:1] == b"[":
        try:
            raw = [bytes(part) for part in _events_decoder.decode(body)]
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Refused(Problem("", f"not JSON: {error}")) from error
        if len(raw) > MAX_EVENTS:
            raise Refused(Problem("", f"{len(raw)} events in one request, at most {MAX_EVENTS} are allowed"))
    events: list[tuple[str, bytes]] = []
    problems: list[Problem] = []
    for index, value in enumerate(raw):
        try:
            events.append((decode(value, now_ms, rules).user_id, value))
        except InvalidEvent as error:
            problems.append(Problem(error.field, error.reason, index))
    if problems:
        raise Refused(*problems)
    return events
