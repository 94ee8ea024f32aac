"""The session that is tried on the console page: ranked again by itself, but not under a person's hands."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from tests.console_world import past, turns

RANKINGS = "**/v1/recommendations"
OFFERED = "#session .ranking .item"


def fail(page: Page, status: int | None) -> None:
    """Rankings are refused with this status; None: nobody answers."""
    if status is None:
        page.route(RANKINGS, lambda route: route.abort())
    else:
        page.route(RANKINGS, lambda route: route.fulfill(status=status, json={"error": "not now"}))


@pytest.mark.parametrize("status", [429, 503, None])
def test_what_could_not_be_ranked_as_the_model_changed_is_ranked_soon(visit, status):
    world = past()
    page = visit(world, allow=("Failed to load resource",)).page
    expect(page.locator(OFFERED).first).to_have_text("item-3")
    fail(page, status)
    world.twin.publish(2)
    problem = page.locator("#session .note")
    expect(problem).to_contain_text(re.compile("Not ranked: (not now|the server does not answer)."))
    page.unroute(RANKINGS)
    expect(problem).to_be_hidden()
    expect(page.locator("#session .ranking")).not_to_have_class(re.compile("stale"))


def test_an_untouched_session_follows_what_is_trending_but_not_under_the_pointer(visit):
    world = past()
    page = visit(world).page
    expect(page.locator(OFFERED)).to_have_text(["item-3", "item-7", *[re.compile("item-")] * 8])
    page.locator("#session .pick").nth(1).hover()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    world.twin.popular(1, *["item-9"] * 5)
    turns(page, 8)  # longer than the time after which it asks again
    assert not [url for url in asked if url.endswith("/v1/recommendations")]
    expect(page.locator(OFFERED).first).to_have_text("item-3")
    page.get_by_role("heading", name="Try a session").hover()
    expect(page.locator(OFFERED).first).to_have_text("item-9")
    page.locator("#session .pick").nth(2).focus()
    world.twin.popular(2, *["item-11"] * 9)
    turns(page, 8)
    expect(page.locator("#session .pick").nth(2)).to_be_focused()
    expect(page.locator(OFFERED).first).to_have_text("item-9")


def test_a_pick_that_failed_is_ranked_while_the_pointer_rests_on_it(visit):
    page = visit(past(), allow=("Failed to load resource",)).page
    expect(page.locator(OFFERED).first).to_have_text("item-3")
    fail(page, 503)
    page.locator("#session .pick").first.click()
    expect(page.locator("#session .note")).to_contain_text("Not ranked: not now.")
    page.unroute(RANKINGS)
    expect(page.locator("#session")).to_contain_text("Ranked by version 1, best first.")
    expect(page.locator("#session .note")).to_be_hidden()
    expect(page.locator("#picked li span")).to_have_text(["item-3"])
