"""The outermost layer of the HTTP server: API keys, body size, counting, and the short way to rankings."""

from __future__ import annotations

import hmac
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from starlette.exceptions import HTTPException

from services.recommender.console import page
from services.recommender.metrics import RecommenderMetrics
from services.recommender.params import RECOMMENDATIONS, USERS
from services.recommender.recommendations import Recommendations
from services.recommender.responses import Reply, error_reply

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_PATHS = frozenset({"/docs", "/openapi.json", "/healthz", "/readyz", "/metrics"}) | page.PATHS
"""Served without a key: probes and Prometheus have none, and the pages are where a person enters it."""

_USER_ROUTE = "/v1/users/{user_id}/recommendations"


class Gateway:
    """ASGI application around another one.

    ``GET /v1/users/{user_id}/recommendations`` is answered here: the way through the framework's layers takes longer
    than the ranking of a user whose state did not change. And only the raw path tells a slash in a user id, sent as
    %2F, from one that separates.
    """

    def __init__(
        self,
        app: App,
        recommendations: Recommendations,
        api_keys: Sequence[str],
        max_body: int,
        metrics: RecommenderMetrics,
    ) -> None:
        self._app = app
        self._recommendations = recommendations
        self._keys = [key.encode() for key in api_keys]
        self._max_body = max_body
        self._too_large = f"the body has more than HTTP_MAX_BODY_BYTES={max_body} bytes"
        self._requests = metrics.requests
        self._latency = metrics.latency
        self._user_ok = metrics.requests.labels(_USER_ROUTE, "200").inc
        self._user_seconds = metrics.latency.labels(_USER_ROUTE).observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        if self._keys and scope["path"] not in OPEN_PATHS and not self._has_key(scope):
            await _send(send, error_reply(401, "a valid key is needed in the header X-API-Key"))
            self._requests.labels("unauthorized", "401").inc()
            return
        raw_user = _user_asked_for(scope)
        if raw_user is None:
            await self._through(scope, receive, send, started)
            return
        reply = await self._recommendations.for_user(raw_user, scope["query_string"])
        await _send(send, reply)
        if reply.status == 200:
            self._user_ok()
        else:
            self._requests.labels(_USER_ROUTE, str(reply.status)).inc()
        self._user_seconds(time.perf_counter() - started)

    def _has_key(self, scope: Scope) -> bool:
        given = next((value for name, value in scope["headers"] if name == b"x-api-key"), b"")
        # All keys are compared, each in constant time: how long it takes tells nothing of them.
        return sum(hmac.compare_digest(given, key) for key in self._keys) > 0

    async def _through(self, scope: Scope, receive: Receive, send: Send, started: float) -> None:
        status = 0
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self._max_body:
                raise HTTPException(413, self._too_large)  # the framework is reading: it makes the answer
            return message

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            if _announced(scope) > self._max_body:
                await _send(noting, error_reply(413, self._too_large)._replace(headers=[(b"connection", b"close")]))
            else:
                await self._app(scope, counted, noting)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._requests.labels(route, str(status or 500)).inc()
            self._latency.labels(route).observe(time.perf_counter() - started)


def _user_asked_for(scope: Scope) -> bytes | None:
    """The user id as it stands in the path of a GET for a user's recommendations."""
    if scope["method"] != "GET":
        return None
    path: bytes = scope["raw_path"]
    if path.startswith(USERS) and path.endswith(RECOMMENDATIONS) and len(path) >= len(USERS) + len(RECOMMENDATIONS):
        return path[len(USERS) : -len(RECOMMENDATIONS)]
    return None


def _announced(scope: Scope) -> int:
    length = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
    return int(length) if length.isdigit() else 0


async def _send(send: Send, reply: Reply) -> None:
    await send({"type": "http.response.start", "status": reply.status, "headers": reply.raw_headers()})
    await send({"type": "http.response.body", "body": reply.body})
