"""A Chromium for all tests of pages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from tests.conftest import _missing
from tests.console_world import CHROMIUM, Visit, World, chromium, served

expect.set_options(timeout=30_000)
"""ms; a wait on a machine that does other things too, not a measure of speed"""


@pytest.fixture(scope="module")  # not longer: Playwright keeps an event loop in this thread, and others want theirs
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        _missing("no chromium: apt-get install chromium, or name one in CHROMIUM")
    with chromium() as browser:
        yield browser


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Visit]]:
    """Opens the page of a world. At the end, no page has complained, nor asked anyone but its own server."""
    worlds: dict[int, tuple[Any, str]] = {}
    visits: list[Visit] = []

    def open_page(world: World, allow: tuple[str, ...] = (), **options: Any) -> Visit:
        if id(world) not in worlds:
            context = served(world)
            worlds[id(world)] = (context, context.__enter__())
        visits.append(Visit(browser, worlds[id(world)][1], **options))
        visits[-1].allowed = allow
        return visits[-1]

    yield open_page
    for one in visits:
        one.close()
    for context, _ in worlds.values():
        context.__exit__(None, None, None)
    for one in visits:
        assert one.elsewhere == []
        assert [text for text in one.said if not any(part in text for part in one.allowed)] == []
