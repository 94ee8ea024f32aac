"""The console's part of the HTTP interface: the page, what it is told, and what is known of a user."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request
from fastapi.responses import RedirectResponse, Response

from services.recommender.console.page import StaticFile, load_page
from services.recommender.console.view import Console, window_of
from services.recommender.params import Refused, user_of
from services.recommender.responses import Reply, failure_reply, json_reply
from shared.core.errors import DriftwoodError

Respond = Callable[[Reply], Response]


def add_console(api: FastAPI, console: Console | None, respond: Respond) -> None:
    """Without a console, ``/`` leads to the API page."""
    if console is None:

        @api.get("/", include_in_schema=False)
        async def root() -> Response:
            return RedirectResponse("docs")

        return

    for path, file in load_page().items():
        _add_file(api, path, file)

    @api.get("/v1/console", name="console")
    async def told(request: Request) -> Response:
        try:
            window_s = window_of(request.query_params)
        except Refused as error:
            return respond(failure_reply(error))
        return respond(Reply(200, console.encoded(window_s)))


def _add_file(api: FastAPI, path: str, file: StaticFile) -> None:
    @api.get(path, include_in_schema=False)
    async def send(request: Request) -> Response:
        known = request.headers.get("if-none-match") == file.etag
        response = Response(status_code=304 if known else 200)
        response.body = b"" if known else file.body
        response.raw_headers = [
            h for h in file.headers if not known or h[0] not in (b"content-length", b"content-type")
        ]
        return response


def user_view(
    describe: Callable[[str], object], raw_user: Callable[[Request], bytes], respond: Respond
) -> Callable[[Request], Awaitable[Response]]:
    """What answers GET /v1/users/{user_id}."""

    async def user(request: Request) -> Response:
        try:
            view = await asyncio.to_thread(describe, user_of(raw_user(request)))
        except (Refused, DriftwoodError) as error:
            return respond(failure_reply(error))
        return respond(json_reply(200, view))

    return user
