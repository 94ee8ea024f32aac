"""Behind the guard: body size, counting, and the short way to rankings."""

from __future__ import annotations

import asyncio
import time

from starlette.exceptions import HTTPException

from services.recommender.guard import App, HttpRules, Message, Receive, Scope, Send, send_reply
from services.recommender.metrics import RecommenderMetrics
from services.recommender.params import RECOMMENDATIONS, USERS
from services.recommender.recommendations import Recommendations
from services.recommender.responses import error_reply

_CLOSE = [(b"connection", b"close")]
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
        rules: HttpRules,
        metrics: RecommenderMetrics,
    ) -> None:
        self._app = app
        self._recommendations = recommendations
        self._max_body = rules.max_body
        self._too_large = f"the body has more than HTTP_MAX_BODY_BYTES={rules.max_body} bytes"
        self._body_s = rules.body_timeout_s
        self._too_slow = f"the body took more than HTTP_BODY_TIMEOUT_S={rules.body_timeout_s:g}"
        self._rejected = metrics.rejected
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
        raw_user = _user_asked_for(scope)
        if raw_user is None:
            await self._through(scope, receive, send, started)
            return
        reply = await self._recommendations.for_user(raw_user, scope["query_string"])
        await send_reply(send, reply)
        if reply.status == 200:
            self._user_ok()
        else:
            self._requests.labels(_USER_ROUTE, str(reply.status)).inc()
        self._user_seconds(time.perf_counter() - started)

    async def _through(self, scope: Scope, receive: Receive, send: Send, started: float) -> None:
        status = 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            if _announced(scope) > self._max_body:
                self._rejected.labels("body_size").inc()
                await send_reply(noting, error_reply(413, self._too_large)._replace(headers=_CLOSE))
            else:
                await self._app(scope, self._limited(receive), noting)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._requests.labels(route, str(status or 500)).inc()
            self._latency.labels(route).observe(time.perf_counter() - started)

    def _limited(self, receive: Receive) -> Receive:
        """The same, no larger and no slower than allowed. What it raises, the framework answers: it is reading."""
        size, whole = 0, False
        deadline = asyncio.get_running_loop().time() + self._body_s

        async def limited() -> Message:
            nonlocal size, whole
            if whole:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                self._rejected.labels("body_time").inc()
                raise HTTPException(408, self._too_slow, {"connection": "close"}) from None
            if message["type"] == "http.disconnect":
                self._rejected.labels("body_gone").inc()
                raise HTTPException(400, "the connection ended before the body did")
            size += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if size > self._max_body:
                self._rejected.labels("body_size").inc()
                raise HTTPException(413, self._too_large, {"connection": "close"})
            return message

        return limited


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
