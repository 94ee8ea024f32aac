"""The HTTP interface, put together from parts that are given."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import msgspec
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route
from starlette.types import Scope

from services.recommender.console.routes import add_console, user_view
from services.recommender.console.view import Console
from services.recommender.docs_page import DOCS_PAGE
from services.recommender.forget import Forgetter
from services.recommender.gateway import Gateway
from services.recommender.guard import App, Guard, HttpRules
from services.recommender.metrics import RecommenderMetrics
from services.recommender.models_view import describe_models
from services.recommender.openapi import DESCRIPTIONS, complete
from services.recommender.outbox import Outbox, OutRecord
from services.recommender.params import RECOMMENDATIONS, USERS, Refused, asks_for_traffic, events_of, user_of
from services.recommender.ranker import Ranker
from services.recommender.readiness import Readiness
from services.recommender.recommendations import Recommendations
from services.recommender.responses import Reply, error_reply, failure_reply, json_reply
from services.recommender.user_view import UserViews
from shared.core.errors import DriftwoodError
from shared.core.events import EventRules
from shared.core.registry_port import ModelRegistry


@dataclass(frozen=True)
class Parts:
    """What the interface needs, ready to use."""

    ranker: Ranker
    recommendations: Recommendations
    outbox: Outbox
    forgetter: Forgetter
    registry: ModelRegistry
    model_problem: Callable[[], str | None]
    readiness: Readiness
    rules: EventRules
    interactions_topic: str
    metrics: RecommenderMetrics
    http: HttpRules = field(default_factory=HttpRules)
    users: UserViews = field(kw_only=True)
    console: Console | None = field(kw_only=True, default=None)


class _AnyUser(Convertor[str]):
    """A user id in a path: any text, line breaks too, where the framework's own ``path`` ends at the first."""

    regex = "[\\s\\S]*"

    def convert(self, value: str) -> str:
        """As it is: the id is read from the raw path."""
        return value

    def to_string(self, value: str) -> str:
        """As it is."""
        return value


def build_app(parts: Parts) -> App:
    """The whole ASGI application."""
    register_url_convertor("user", _AnyUser())
    api = FastAPI(title="Driftwood", docs_url=None, redoc_url=None, description=DESCRIPTIONS["driftwood"])
    view = user_view(parts.users.describe, _raw_user, _response)
    _add_rankings(api, parts, view)
    _add_interactions(api, parts)
    _add_forget(api, parts)
    api.get("/v1/users/{user_id:user}", name="user")(view)  # after the routes whose paths are longer
    _add_models(api, parts)
    _add_health(api, parts)
    _add_pages(api)
    add_console(api, parts.console, _response)
    _add_failures(api)
    complete(api, parts.http)
    gateway = Gateway(api, parts.recommendations, parts.http, parts.metrics)
    return Guard(gateway, parts.http, parts.metrics)


def _response(reply: Reply) -> Response:
    response = Response(status_code=reply.status)
    response.body = reply.body
    response.raw_headers = reply.raw_headers() if reply.status != 204 else []
    return response


def _raw_user(request: Request, suffix: int = 0) -> bytes:
    path: bytes = request.scope["raw_path"]
    return path[len(USERS) : len(path) - suffix]


def _add_rankings(api: FastAPI, parts: Parts, view: Callable[[Request], Awaitable[Response]]) -> None:
    # Described here, answered by the gateway before it comes this far.
    @api.get("/v1/users/{user_id:user}/recommendations", name="recommendations")
    async def for_user(request: Request) -> Response:
        if not request.scope["raw_path"].endswith(RECOMMENDATIONS):  # of a user whose id ends so, by %2F
            return await view(request)
        raw_user = _raw_user(request, len(RECOMMENDATIONS))
        return _response(await parts.recommendations.for_user(raw_user, request.scope["query_string"]))

    @api.post("/v1/recommendations", name="session")
    async def for_session(request: Request) -> Response:
        return _response(await parts.recommendations.for_session(await request.body()))


def _add_interactions(api: FastAPI, parts: Parts) -> None:
    @api.post("/v1/interactions", name="interactions")
    async def accept(request: Request) -> Response:
        try:
            events = events_of(await request.body(), int(time.time() * 1000), parts.rules)
            await parts.outbox.publish([OutRecord(parts.interactions_topic, u.encode(), v) for u, v in events])
        except (Refused, DriftwoodError) as error:
            return _response(failure_reply(error))
        parts.metrics.accepted.inc(len(events))
        return _response(json_reply(202, {"accepted": len(events)}))


def _add_forget(api: FastAPI, parts: Parts) -> None:
    @api.delete("/v1/users/{user_id:user}", name="forget")
    async def forget(request: Request) -> Response:
        raw_user = _raw_user(request)
        if raw_user.endswith(RECOMMENDATIONS):  # of this user, not another one: whose id has a slash sends it as %2F
            raise HTTPException(405, headers={"Allow": "GET"})
        try:
            user_id = user_of(raw_user)
            told, update_partitions = await parts.forgetter.empty(user_id)
            parts.ranker.forget(user_id)
            await parts.forgetter.tell(told, update_partitions)
        except (Refused, DriftwoodError) as error:
            return _response(failure_reply(error))
        return _response(Reply(204))


def _add_models(api: FastAPI, parts: Parts) -> None:
    @api.get("/v1/models", name="models")
    async def models() -> Response:
        try:
            view = await asyncio.to_thread(describe_models, parts.registry, parts.ranker.serving, parts.model_problem)
        except DriftwoodError as error:
            return _response(failure_reply(error))
        return _response(json_reply(200, view))


def _add_health(api: FastAPI, parts: Parts) -> None:
    @api.get("/healthz", name="healthz")
    async def alive() -> Response:
        return _response(json_reply(200, {"status": "alive"}))

    @api.get("/readyz", name="readyz")
    async def ready(request: Request) -> Response:
        try:
            for_traffic = asks_for_traffic(request.query_params)
        except Refused as error:
            return _response(failure_reply(error))
        fine, details = await asyncio.to_thread(parts.readiness, for_traffic)
        return _response(json_reply(200 if fine else 503, {"ready": fine, **details}))

    @api.get("/metrics", name="metrics")
    async def metrics() -> Response:
        text = await asyncio.to_thread(generate_latest, parts.metrics.registry)
        return _response(Reply(200, text, CONTENT_TYPE_LATEST.encode()))


def _add_pages(api: FastAPI) -> None:
    @api.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(DOCS_PAGE)


def _methods_of(api: FastAPI, scope: Scope) -> list[str]:
    """All that the route of this path and its namesakes answer."""
    routes = [route for route in api.routes if isinstance(route, Route)]
    path = next((route.path_format for route in routes if route.matches(scope)[0] != Match.NONE), None)
    return sorted({method for route in routes if route.path_format == path for method in route.methods or ()})


def _add_failures(api: FastAPI) -> None:
    @api.exception_handler(HTTPException)
    async def known(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        reply = error_reply(error.status_code, f"{error.detail}: {request.method} {request.url.path}")
        headers = {name.lower(): value for name, value in (error.headers or {}).items()}
        if "allow" in headers:  # the framework names the methods of the first route only
            headers["allow"] = ", ".join(_methods_of(api, request.scope))
        more = [(name.encode(), value.encode()) for name, value in headers.items()]
        return _response(reply._replace(headers=[*reply.headers, *more]))

    @api.exception_handler(Exception)
    async def unknown(request: Request, error: Exception) -> Response:
        return Response(msgspec.json.encode({"error": "internal error, see the log"}), 500, None, "application/json")
