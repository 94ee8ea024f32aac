"""The OpenAPI description: what the routes themselves cannot tell, for they read bytes and answer bytes."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import FastAPI

from services.recommender.console.view import DEFAULT_WINDOW_S, WINDOWS_S, View
from services.recommender.guard import HttpRules
from services.recommender.params import DEFAULT_K, MAX_EVENTS, MAX_ITEMS, MAX_K, TRAFFIC, SessionRequest
from services.recommender.responses import ErrorBody
from services.recommender.user_view import UserView
from shared.core.events import MAX_ID_BYTES, Interaction
from shared.core.ranking import Ranking

DESCRIPTIONS = {
    "driftwood": "Next-item recommendations that follow each user's last action.",
    "recommendations": "The items that this user most likely acts on next. A user of whom nothing is known gets what"
    " is trending; so does everybody while there is no model.",
    "session": f"The same for an anonymous session of up to {MAX_ITEMS} items, oldest first. Nothing is stored.",
    "interactions": f"Take over one interaction, or a list of up to {MAX_EVENTS}: all or none. Answered when Kafka has"
    " acknowledged all. After a 503 some may have been written: with an event_id, sending them again is safe.",
    "forget": "Forget the user: state and ranking now, the log of sessions before the next training.",
    "user": "What is known of a user: recent items, age of the state, the model that made it, and, where the ranking is"
    " what is trending, why. A user of whom nothing is known gets an answer too.",
    "console": "What the console page shows: live numbers, engagement over time, what happened to the models. It"
    " changes with the page; for machines there is /metrics.",
    "models": "The model in service, the others, their metrics, what the gate said of them, where they come from, and"
    " what happened to them last: alarms, trainings, decisions of the gate, swaps, rollbacks.",
    "healthz": "Whether the process is alive.",
    "readyz": "Whether Redis and Kafka can be reached, and which model is in use. 503 where one cannot. For a balancer:"
    " with `for=traffic` it is 200 while rankings can be given, which after a good start takes Redis alone.",
    "metrics": "For Prometheus.",
}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": schema}}}


def _query(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": schema, "description": description}


_USER = {
    "name": "user_id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "minLength": 1, "maxLength": MAX_ID_BYTES},
    "description": f"1 to {MAX_ID_BYTES} bytes of UTF-8, percent-encoded, a slash too",
}
_INVALID = {"description": "Names each field at fault", **_json(_ref("ErrorBody"))}
_AWAY = {"description": "Redis or Kafka cannot be reached; see Retry-After", **_json(_ref("ErrorBody"))}
_BUSY = {"description": "More than HTTP_MAX_REQUESTS at the same time; see Retry-After", **_json(_ref("ErrorBody"))}
_TOO_SLOW = {"description": "The body took more than HTTP_BODY_TIMEOUT_S", **_json(_ref("ErrorBody"))}
_TOO_LARGE = {"description": "The body is larger than HTTP_MAX_BODY_BYTES", **_json(_ref("ErrorBody"))}
_OBJECT: dict[str, Any] = _json({"type": "object"})
_RANKING = {"description": "A ranking, best first", **_json(_ref("Ranking"))}

_OPERATIONS: dict[str, dict[str, Any]] = {
    "recommendations": {
        "parameters": [
            _USER,
            _query("k", {"type": "integer", "minimum": 1, "maximum": MAX_K, "default": DEFAULT_K}, "how many"),
            _query("exclude", {"type": "string"}, "item ids to leave out, comma-separated; may be given repeatedly"),
            _query("exclude_seen", {"type": "boolean", "default": False}, "leave out the user's recent items"),
        ],
        "responses": {"200": _RANKING, "422": _INVALID, "503": _AWAY},
    },
    "session": {
        "requestBody": {"required": True, **_json(_ref("SessionRequest"))},
        "responses": {"200": _RANKING, "408": _TOO_SLOW, "413": _TOO_LARGE, "422": _INVALID, "503": _AWAY},
    },
    "interactions": {
        "requestBody": {
            "required": True,
            **_json(
                {
                    "anyOf": [
                        _ref("Interaction"),
                        {"type": "array", "items": _ref("Interaction"), "maxItems": MAX_EVENTS},
                    ]
                }
            ),
        },
        "responses": {
            "202": {
                "description": "All are in Kafka",
                **_json({"type": "object", "properties": {"accepted": {"type": "integer"}}, "required": ["accepted"]}),
            },
            "408": _TOO_SLOW,
            "413": _TOO_LARGE,
            "422": _INVALID,
            "503": _AWAY,
        },
    },
    "forget": {
        "parameters": [_USER],
        "responses": {"204": {"description": "Forgotten"}, "422": _INVALID, "503": _AWAY},
    },
    "user": {
        "parameters": [_USER],
        "responses": {
            "200": {"description": "The user", **_json(_ref("UserView"))},
            "422": _INVALID,
            "503": _AWAY,
        },
    },
    "console": {
        "parameters": [
            _query("window", {"type": "integer", "enum": list(WINDOWS_S), "default": DEFAULT_WINDOW_S}, "seconds"),
        ],
        "responses": {"200": {"description": "What is known now", **_json(_ref("View"))}, "422": _INVALID},
    },
    "models": {"responses": {"200": {"description": "Versions", **_OBJECT}, "503": _AWAY}},
    "healthz": {"responses": {"200": {"description": "Alive", **_OBJECT}}},
    "readyz": {
        "parameters": [_query("for", {"type": "string", "enum": [TRAFFIC]}, "ready for what; left out: all")],
        "responses": {
            "200": {"description": "Ready", **_OBJECT},
            "422": _INVALID,
            "503": {"description": "Not ready, and why", **_OBJECT},
        },
    },
    "metrics": {
        "responses": {"200": {"description": "Text format", "content": {"text/plain": {"schema": {"type": "string"}}}}}
    },
}


_OPEN = frozenset({"healthz", "readyz"})
_KEYED = {
    "401": {"description": "No key, or one that is not known", **_json(_ref("ErrorBody"))},
    "403": {"description": "The key's scopes do not allow this", **_json(_ref("ErrorBody"))},
}
_LIMITED = {"429": {"description": "Too many requests; see Retry-After", **_json(_ref("ErrorBody"))}}
_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "Authorization: Bearer KEY"},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}


def _guarded(name: str, operation: dict[str, Any], http: HttpRules) -> None:
    """What the guard in front of a route adds to its description."""
    if name not in _OPEN:
        operation["responses"] = {"503": _BUSY} | operation.get("responses", {})
    if http.keys.needed and name not in _OPEN and not (name == "metrics" and http.public_metrics):
        operation["security"] = [{scheme: []} for scheme in _SCHEMES]
        operation["responses"] = operation.get("responses", {}) | _KEYED
    if http.rate is not None and name not in _OPEN:
        operation["responses"] = operation.get("responses", {}) | _LIMITED


def complete(api: FastAPI, http: HttpRules) -> None:
    """Make the application's description say what its routes take and answer."""
    _, components = msgspec.json.schema_components(
        (Ranking, Interaction, SessionRequest, UserView, View, ErrorBody), ref_template="#/components/schemas/{name}"
    )
    generate = api.openapi

    def described() -> dict[str, Any]:
        schema = generate()
        schema.setdefault("components", {})["schemas"] = components
        if http.keys.needed:
            schema["components"]["securitySchemes"] = _SCHEMES
        for path in schema["paths"].values():
            for operation in path.values():
                name = operation["summary"].lower()
                operation.update(_OPERATIONS.get(name, {}), description=DESCRIPTIONS.get(name, ""))
                _guarded(name, operation, http)
        return schema

    api.openapi = described  # type: ignore[method-assign]
