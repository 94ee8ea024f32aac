"""What the console page leaves alone as it is drawn anew: focus, what was opened, those who listen to it."""

from __future__ import annotations

import re
import time
from datetime import datetime, timedelta

from playwright.sync_api import Page, Route, expect

from tests.console_world import World, past, turns
from tests.unit.recommender_twins import ITEMS, weights

LISTEN = """() => {
  const every = {childList: true, characterData: true, subtree: true};
  window.heard = [];
  for (const node of document.querySelectorAll("[role=status], [role=alert], [aria-live]"))
    new MutationObserver(() => heard.push(node.textContent)).observe(node, every);
}"""
KEEP = """() => {
  window.focused = 0;
  window.kept = [...document.querySelectorAll(".plot, .surface, .flag")];
  document.addEventListener("focusin", () => focused++);
}"""
SLIDER = """one => ["min", "now", "max"].map(name => Number(one.getAttribute("aria-value" + name)))"""


def slider(page: Page) -> list[float]:
    """The chart's [first time, chosen time, last time], ms since the epoch."""
    return page.locator(".surface").evaluate(SLIDER)


def test_the_chart_keeps_its_parts_and_the_focus_as_it_is_drawn_anew(visit):
    world = past()
    page = visit(world).page
    expect(page.locator(".flag")).to_have_count(2)
    page.locator(".flag").nth(1).focus()
    page.evaluate(KEEP)
    world.note("rollback", {"version": "1", "back_to": "0", "why": "by hand"}, 300)
    expect(page.locator(".flag text")).to_have_text(["back to 0", "alarm", "kept back"])
    turns(page, 3)
    assert page.evaluate("kept.map(node => node.isConnected)") == [True] * 4
    assert page.evaluate("focused") == 0
    expect(page.locator(".flag").nth(2)).to_be_focused()
    expect(page.locator(".tip")).to_contain_text("Version 2 kept back")


def test_a_focused_label_that_goes_gives_the_focus_to_its_neighbour(visit):
    world = past()
    page = visit(world).page
    expect(page.locator(".flag")).to_have_count(2)
    page.locator(".flag").nth(0).focus()
    notes = world.twin.registry._notes
    del notes[min(notes)]
    expect(page.locator(".flag text")).to_have_text(["kept back"])
    expect(page.locator(".flag").first).to_be_focused()
    expect(page.locator(".tip")).to_contain_text("Version 2 kept back")


def test_the_tab_key_leaves_the_labels_from_any_of_them(visit):
    page = visit(past()).page
    expect(page.locator(".flag")).to_have_count(2)
    page.locator(".surface").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".flag").nth(0)).to_be_focused()
    turns(page, 2)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('.flags')") is None
    page.keyboard.press("Shift+Tab")
    expect(page.locator(".flag").nth(0)).to_be_focused()
    page.keyboard.press("Shift+Tab")
    expect(page.locator(".surface")).to_be_focused()


def test_the_slider_tells_times(visit):
    page = visit(past()).page
    expect(page.locator(".flag")).to_have_count(2)
    first, now, last = slider(page)
    assert now == last
    assert abs(last / 1000 - time.time()) < 30
    assert 600_000 < last - first <= 905_000  # of 15 minutes, or the life of a younger system
    surface = page.locator(".surface")
    expect(surface).to_have_attribute("aria-valuetext", "now")
    surface.focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    first, now, last = slider(page)
    assert last - now in (22_500, 27_500)  # from the middle of the last five seconds on, ten with each
    told = surface.get_attribute("aria-valuetext")
    assert told.startswith(datetime.fromtimestamp(now / 1000).strftime("%H:%M:%S: "))
    turns(page, 7)  # the window moves on, in steps of five seconds; a focused slider that changes is read out
    assert (slider(page), surface.get_attribute("aria-valuetext")) == ([first, now, last], told)
    page.keyboard.press("Home")
    first, now, _ = slider(page)
    assert now == first


def test_nothing_is_read_out_but_what_changed(visit):
    page = visit(past(), allow=("Failed to load resource",)).page
    expect(page.locator("#session .pick")).to_have_count(10)
    expect(page.locator("#status")).to_have_text("Live")
    page.evaluate(LISTEN)
    page.locator(".surface").hover()
    expect(page.locator(".tip")).to_be_visible()
    turns(page, 4)
    assert page.evaluate("heard") == []
    page.route("**/v1/**", lambda route: route.abort())
    expect(page.locator("#status")).to_have_text(re.compile("Reconnecting, data of [6-9].*s ago"), timeout=15_000)
    heard = page.evaluate("heard")
    assert [text for text in heard if "Reconnecting" in text] == ["Reconnecting"]
    assert not [text for text in heard if "data of" in text]


def older(page: Page, route: Route, by_ms: int) -> None:
    """The answer, of so much later."""
    response = route.fetch()
    view = response.json()
    route.fulfill(response=response, json=view | {"at": view["at"] + by_ms})


def test_the_older_models_stay_open_and_focused(visit):
    world = World()
    for n in range(2, 10):
        lineage = {"parent": str(n - 1), "trained_at": int(time.time() * 1000) - 200_000}
        world.twin.registry.publish(weights(n), ITEMS, lineage=lineage)
    page = visit(world).page
    summary = page.locator("#models summary")
    expect(summary).to_have_text("3 older")
    facts = page.locator(".model .facts").first
    expect(facts).to_have_text(re.compile(r"from version 8 · trained [34]\smin ago"))
    summary.press("Enter")
    page.route("**/v1/console?*", lambda route: older(page, route, 300_000))
    expect(facts).to_have_text(re.compile(r"from version 8 · trained [89]\smin ago"))
    expect(page.locator("#models details")).to_have_attribute("open", "")
    expect(summary).to_be_focused()
    world.twin.registry.publish(weights(10), ITEMS, lineage={"parent": "9"})
    expect(summary).to_have_text("4 older")
    expect(page.locator("#models details")).to_have_attribute("open", "")
    expect(summary).to_be_focused()
    page.unroute_all(behavior="wait")


def test_yesterday_is_told_as_yesterday_after_midnight(visit):
    world = past()
    page = visit(world).page
    written = page.locator("#journal li time").first
    then = datetime.fromisoformat(written.get_attribute("datetime"))
    page.clock.set_fixed_time(then)
    expect(written).to_have_text(re.compile(r"^\d\d:\d\d:\d\d$"))
    page.clock.set_fixed_time(then + timedelta(days=1))
    expect(written).to_have_text(re.compile(r"^\d+ [A-Z][a-z]+ \d\d:\d\d:\d\d$"))
