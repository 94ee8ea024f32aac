"""HTTP answers as bytes, errors included: {"error": text, "details": [{"field", "reason", "index"?}]}."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from services.recommender.params import Problem, Refused
from shared.core.errors import DriftwoodError, Unavailable

JSON = b"application/json"
RETRY_AFTER_S = 1
"""Told to clients while Redis or Kafka is away: they come back within seconds, or after a person has acted."""


class Reply(NamedTuple):
    """Status, body and headers besides content type and length."""

    status: int
    body: bytes = b""
    content_type: bytes = JSON
    headers: Sequence[tuple[bytes, bytes]] = ()

    def raw_headers(self) -> list[tuple[bytes, bytes]]:
        """All headers. Nothing may be kept by caches in between: a ranking is as old as its state."""
        return [
            (b"content-type", self.content_type),
            (b"content-length", b"%d" % len(self.body)),
            (b"cache-control", b"no-store"),
            *self.headers,
        ]


class ErrorBody(msgspec.Struct, omit_defaults=True):
    """Why a request was not served; ``details`` name the fields at fault."""

    error: str
    details: list[dict[str, str | int]] = []


def json_reply(status: int, content: object) -> Reply:
    """Any content as JSON."""
    return Reply(status, msgspec.json.encode(content))


def error_reply(status: int, text: str, problems: Sequence[Problem] = ()) -> Reply:
    """An error of the shape above."""
    details: list[dict[str, str | int]] = []
    for problem in problems:
        detail: dict[str, str | int] = {"field": problem.field, "reason": problem.reason}
        if problem.at is not None:
            detail["index"] = problem.at
        details.append(detail)
    headers = [(b"retry-after", b"%d" % RETRY_AFTER_S)] if status == 503 else []
    return Reply(status, msgspec.json.encode(ErrorBody(text, details)), JSON, headers)


def failure_reply(error: Refused | DriftwoodError) -> Reply:
    """422 for what the caller can mend, 503 for what only waiting or an operator can."""
    if isinstance(error, Refused):
        fields = dict.fromkeys(problem.field or "body" for problem in error.problems)
        return error_reply(422, f"invalid: {', '.join(fields)}", error.problems)
    if isinstance(error, Unavailable):
        return error_reply(503, f"unavailable: {error}")
    return error_reply(503, f"{type(error).__name__}: {error}")
