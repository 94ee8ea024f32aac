"""The console page in Chromium: real files, scripts and calls, on twins in memory."""

from __future__ import annotations

import re
import time
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import expect

from services.recommender.api_keys import KeyRing, keys_of_file, keys_of_setting
from services.recommender.guard import HttpRules
from tests.console_world import World, past, turns

PLOT = "#chart .plot"
CONTRAST = Path(__file__).with_name("contrast.js")


def best_of(one, path, **options):
    """The items that the server itself offers, best first."""
    with httpx.Client(base_url=one.address) as client:
        return [
            item["item_id"] for item in client.request("POST" if options else "GET", path, **options).json()["items"]
        ]


def heights(page, version="1"):
    """The line of a version as [[x, y], ...] in pixels, downwards."""
    drawn = page.locator(f"{PLOT} .line.hue-{version} .stroke").last.get_attribute("d")
    return [[float(n) for n in point] for point in re.findall(r"[ML]([\d.]+),([\d.]+)", drawn)]


def test_a_shift_of_taste_is_seen_falling_with_its_alarm_marked(visit):
    page = visit(past()).page
    expect(page.locator(".flag")).to_have_count(2)
    expect(page.locator(".flag text")).to_have_text(["alarm", "kept back"])
    line = heights(page)
    third = len(line) // 3
    before, after = (sum(y for _, y in part) / len(part) for part in (line[:third], line[-third // 2 :]))
    base = float(page.locator(f"{PLOT} .grid line.base").first.get_attribute("y1"))
    assert (base - after) / (base - before) == pytest.approx(0.10 / 0.45, abs=0.1)
    fall, pole = page.locator(".fall"), page.locator(".flag.tone-bad .pole")
    began, alarmed = float(fall.get_attribute("x")), float(pole.get_attribute("x1"))
    drop = next(x for x, y in line if base - y < 0.6 * (base - before))
    assert began - 12 < drop < alarmed
    expect(page.locator("#legend .hue-1")).to_contain_text(re.compile(r"version 1\s?\d+\.\d"))
    expect(page.locator("#journal li").first).to_contain_text("Version 2 kept back Recall@20 challenger .213")
    expect(page.locator("#journal")).to_contain_text("hits fell from 46")


def test_the_line_goes_on_by_itself(visit):
    world = past(shift=False)
    page = visit(world).page
    expect(page.locator(".flag")).to_have_count(0)
    expect(page.locator("[data-tile=hits] .detail")).to_contain_text("no outcome")
    before = heights(page)[-1][0]
    world.outcomes("1", 0.9, (3, 0), 400)
    world.note("alarm", {"version": "1", "before": 0.5, "after": 0.2, "since": 0}, 0)
    expect(page.locator(".flag text")).to_have_text(["alarm"])
    expect(page.locator("[data-tile=hits] .number")).to_have_text(re.compile(r"^(8|9)\d\.\d$"))
    line = page.locator(f"{PLOT} .line.hue-1")
    expect(line.locator("circle, .stroke").nth(1)).to_be_visible()  # apart from the line of then: there is a hole
    assert before < 1000
    world.interactions(70, taken=False)
    expect(page.locator("[data-tile=lag] .number")).to_have_text("70")
    expect(page.locator("[data-tile=events] .detail")).to_have_text("120 so far")


def test_the_last_minute_is_the_last_minute_in_every_window(visit):
    world = past(shift=False)
    world.outcomes("1", 1.0, (185, 65), 20)  # in one point with the last minute, where a point is of two
    world.outcomes("1", 0.0, (20, 0), 5)
    page = visit(world).page
    hits = page.locator("[data-tile=hits]")
    expect(hits).to_contain_text("0.0%of 100 actions, last minute")
    page.get_by_role("radio", name="6 hours").click()
    turns(page, 2)
    expect(hits).to_contain_text("0.0%of 100 actions, last minute")


def test_labels_do_not_cover_each_other_nor_poles_however_many(visit):
    world = past(shift=False)
    for n in range(14):
        world.note("swap", {"version": str(n + 2), "from": str(n + 1), "why": "gate"}, 600 - 9 * n)
        world.note("alarm", {"version": "1", "before": 0.5, "after": 0.2, "since": 0}, 598 - 41 * n)
    for width in (1280, 360):
        page = visit(world, viewport={"width": width, "height": 800}).page
        expect(page.locator(".flag").first).to_be_visible()
        boxes = page.locator(".flag .pill").evaluate_all("all => all.map(one => one.getBoundingClientRect().toJSON())")
        poles = page.locator(".flag .pole").evaluate_all("all => all.map(one => one.getBoundingClientRect().toJSON())")
        assert len(boxes) >= 3
        for n, a in enumerate(boxes):
            assert a["left"] >= 0
            assert a["right"] <= width
            for b in boxes[n + 1 :]:
                assert (
                    a["right"] < b["left"] or b["right"] < a["left"] or a["bottom"] < b["top"] or b["bottom"] < a["top"]
                )
            for m, pole in enumerate(poles):
                inside = a["left"] + 1 < pole["left"] < a["right"] - 1 and pole["top"] < a["top"]
                assert n == m or not inside, (width, a, pole)


def test_a_label_tells_more_to_the_keyboard_and_to_the_pointer(visit):
    page = visit(past()).page
    tip = page.locator(".tip")
    expect(page.locator(".flag")).to_have_count(2)  # drawn: there is something to walk to
    page.locator("#windows [aria-checked=true]").focus()
    page.keyboard.press("Tab")
    expect(page.locator(".surface")).to_be_focused()
    page.keyboard.press("ArrowLeft")
    expect(tip).to_contain_text(re.compile(r"1?\d\.\d.% version 1 of \d+ actions; first place"))
    page.keyboard.press("Tab")
    expect(page.locator(".flag").nth(1)).to_be_focused()
    expect(tip).to_contain_text("Version 2 kept back")
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".flag").nth(0)).to_be_focused()
    expect(tip).to_contain_text("Version 1: hits fell from 46")
    page.wait_for_function("n => document.querySelector('[data-tile=events] .spark path').getAttribute('d') !== n",
                           arg=page.locator("[data-tile=events] .spark path").first.get_attribute("d"))  # fmt: skip
    expect(page.locator(".flag").nth(0)).to_be_focused()  # drawn anew meanwhile
    expect(tip).to_contain_text("Version 1: hits fell from 46")
    page.keyboard.press("Escape")
    expect(tip).to_be_hidden()
    page.locator(".flag .pill").nth(1).hover()
    expect(tip).to_contain_text("less than 0.95")


def test_the_lineage_shows_who_came_of_whom_and_why_one_was_kept_back(visit):
    page = visit(past()).page
    rows = page.locator(".model")
    expect(rows).to_have_count(2)
    expect(rows.nth(0)).to_contain_text(
        re.compile(r"version 2.*kept back.*from version 1.*this one.*\.213.*version 1.*\.209")
    )
    expect(rows.nth(0)).to_contain_text("less than 0.95")
    expect(rows.nth(1)).to_contain_text(re.compile(r"version 1.*in service"))
    ends = page.evaluate("""() => {
      const path = document.querySelector(".rails path"), at = path.getPointAtLength(path.getTotalLength());
      const list = document.querySelector(".lineage").getBoundingClientRect();
      const node = document.querySelector("[data-version='1'] .node").getBoundingClientRect();
      return [at.x - (node.x + node.width / 2 - list.x), at.y - (node.y + node.height / 2 - list.y)];
    }""")
    assert ends == pytest.approx([0, 0], abs=1)


def test_a_user_is_looked_up_and_followed(visit):
    world = past()
    one = visit(world)
    page = one.page
    page.get_by_label("User id").fill("ada")
    page.keyboard.press("Enter")
    card = page.locator("#user")
    expect(card.locator(".chips li")).to_have_text(["item-1", "item-2"])
    expect(card.locator(".facts-list")).to_contain_text(
        re.compile(r"Last event\d+.s ago.*Hidden state ofversion 1.*Ranked byversion 1")
    )
    best = best_of(one, "v1/users/ada/recommendations?k=10")
    expect(card.locator(".ranking .item")).to_have_text(best)
    world.twin.act("ada", "item-40", ts=int(time.time() * 1000))
    expect(card.locator(".chips li")).to_have_text(["item-1", "item-2", "item-40"])
    best = best_of(one, "v1/users/ada/recommendations?k=10")
    expect(card.locator(".ranking .item")).to_have_text(best)
    page.get_by_role("button", name="Go on from here").click()
    expect(page.locator("#picked li")).to_contain_text(["item-1", "item-2", "item-40"])
    expect(page.locator("#session .ranking .item")).to_have_text(best)


@pytest.mark.parametrize(("user", "why"), [("nobody <b>", "Nothing is stored"), ("stranger", "knows none of")])
def test_someone_of_whom_nothing_is_known_gets_a_reason(visit, user, why):
    world = past()
    world.twin.act("stranger", "unheard-of")
    page = visit(world).page
    page.get_by_label("User id").fill(user)
    page.get_by_role("button", name="Look up").click()
    expect(page.locator("#user .note").filter(has_text="Trending: ")).to_contain_text(why)
    expect(page.locator("#user .ranking .item").first).to_have_text("item-3")
    expect(page.locator("#user .facts-list")).to_contain_text("Ranked bywhat is trending")


def test_a_session_by_keyboard_alone(visit):
    world = past()
    one = visit(world)
    page = one.page
    offered = page.locator("#session .ranking .item")
    expect(offered.first).to_have_text("item-3")
    page.get_by_label("Item id").focus()
    page.keyboard.press("Tab")  # Add
    page.keyboard.press("Tab")
    expect(page.locator("#session .pick").first).to_be_focused()
    outline = page.locator("#session .pick").first.evaluate(
        "one => getComputedStyle(one).outlineStyle + getComputedStyle(one).outlineWidth"
    )
    assert outline == "solid2px"
    page.keyboard.press("Enter")
    expect(page.locator("#picked li span")).to_have_text(["item-3"])
    best = best_of(one, "v1/recommendations", json={"items": ["item-3"], "k": 10})
    expect(offered).to_have_text(best)
    expect(page.locator("#session .pick").first).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    expect(page.locator("#picked li span")).to_have_text(["item-3", best[1]])
    best = best_of(one, "v1/recommendations", json={"items": ["item-3", best[1]], "k": 10})
    expect(offered).to_have_text(best)
    page.get_by_label("Take item-3 out").press("Enter")
    expect(page.locator("#picked li")).to_have_count(1)
    expect(page.locator("#picked button")).to_be_focused()
    page.get_by_role("button", name="Start again").press("Enter")
    expect(page.locator("#picked li")).to_have_count(0)
    expect(offered.first).to_have_text("item-3")


def test_the_tab_key_comes_by_everything_in_the_order_that_is_seen(visit):
    page = visit(past()).page
    expect(page.locator("#session .pick")).to_have_count(10)
    seen = []
    for _ in range(20):
        page.keyboard.press("Tab")
        seen.append(
            page.evaluate(
                "() => { const a = document.activeElement, r = a.getBoundingClientRect();"
                "  return [a.id || a.className.baseVal || a.className || a.textContent, r.top + scrollY]; }"
            )
        )
    names = [name for name, _ in seen]
    assert names[:3] == ["skip", "API", "Metrics"]
    order = [names.index(name) for name in ("surface", "journal", "userid", "itemid", "pick")]
    assert order == sorted(order)


def test_an_empty_system_says_what_to_do_next_and_goes_on_when_it_is_done(visit):
    world = World(model=False)
    one = visit(world, permissions=["clipboard-read", "clipboard-write"])
    page = one.page
    expect(page.get_by_role("heading", name="Nothing has arrived yet")).to_be_visible()
    expect(page.locator("#engagement")).to_be_hidden()
    page.get_by_role("button", name="Copy").first.click()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith(f"curl -X POST '{one.address}v1/interactions'")
    body = re.search(r"-d '(.*)'$", copied, re.DOTALL).group(1).replace("'$(date +%s000)'", "1700000000000")
    with page.expect_response("**/v1/recommendations"):  # asked for once more, and nothing is trending yet
        assert httpx.post(one.address + "v1/interactions", content=body).status_code == 202
    expect(page.get_by_role("heading", name="Nothing has arrived yet")).to_be_hidden()
    expect(page.locator("#session")).to_contain_text("There is nothing to offer yet")
    world.twin.popular(0, "kettle")
    expect(page.locator("#session .ranking .item")).to_have_text(["kettle"])
    expect(page.locator("#session")).to_contain_text("What is trending. Pick an item to begin.")
    expect(page.locator("#models")).to_contain_text("No model yet")
    expect(page.locator("[data-tile=events] .detail")).to_have_text("1 so far")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_a_narrow_window(visit, scheme):
    world = past()
    long = "x" * 256
    world.twin.act("w" * 256, long, "item-1")
    for current in (world, World(model=False)):
        page = visit(current, viewport={"width": 360, "height": 740}, color_scheme=scheme).page
        expect(page.locator("#status")).to_have_text("Live")
        page.get_by_label("User id").fill("w" * 256)
        page.keyboard.press("Enter")
        page.get_by_label("Item id").fill(long)
        page.keyboard.press("Enter")
        expect(page.locator("#picked li")).to_have_count(1)
        expect(page.locator("#user .facts-list")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") == 360


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(visit, scheme):
    """WCAG AA: 4.5 to 1, in both schemes, which differ."""
    world = past()
    page = visit(world, color_scheme=scheme).page
    page.get_by_label("User id").fill("nobody")
    page.keyboard.press("Enter")
    expect(page.locator("#user .ranking li")).to_have_count(10)
    page.locator("#session .pick").nth(2).click()
    expect(page.locator("#picked li")).to_have_count(1)
    page.wait_for_function("() => document.getAnimations().length === 0")
    assert page.evaluate(CONTRAST.read_text()) == []
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(14, 20, 23)"
    assert dark == (scheme == "dark")


def test_a_key_is_asked_for_used_and_kept_for_the_tab(visit):
    world = World(http=HttpRules(KeyRing(keys_of_setting("the-key"), needed=True)))
    world.interactions(3)
    page = visit(world, allow=("401",)).page
    field = page.get_by_label("This server asks for an API key")
    expect(field).to_be_focused()
    expect(page.locator("#status")).to_contain_text("Needs a key")
    field.fill("another")
    page.keyboard.press("Enter")
    expect(field).to_be_visible()
    field.fill("the-key")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_have_text("Live")
    expect(field).to_be_hidden()
    expect(page.locator("#session .pick")).to_have_count(10)
    page.reload()
    expect(page.locator("#status")).to_have_text("Live")
    assert page.evaluate("localStorage.length") == 0


def test_a_key_that_may_not_read_can_be_replaced_after_a_reload_too(visit):
    keys = keys_of_file("writer write key-of-one-who-writes\nreader read key-of-one-who-reads")
    page = visit(World(http=HttpRules(KeyRing(keys, needed=True))), allow=("401", "403")).page
    field = page.get_by_label("This server asks for an API key")
    expect(page.locator("#keysays")).to_be_hidden()
    field.fill("key-of-one-who-writes")
    page.keyboard.press("Enter")
    expect(page.locator("#keysays")).to_contain_text("may not read: key 'writer' has not the scope 'read'")
    page.reload()
    expect(page.locator("#keysays")).to_contain_text("may not read")
    expect(page.locator("#status")).to_have_text("Needs another key")
    expect(page.locator("#alerts")).to_be_empty()
    expect(field).to_be_focused()
    field.fill("key-of-nobody")
    page.keyboard.press("Enter")
    expect(page.locator("#keysays")).to_have_text("The key that was given is not known.")
    field.fill("key-of-one-who-reads")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_have_text("Live")
    expect(field).to_be_hidden()


def test_redis_away_is_said_and_over_when_it_is_back(visit):
    world = past()
    page = visit(world, allow=("503",)).page
    page.get_by_label("User id").fill("ada")
    page.keyboard.press("Enter")
    expect(page.locator("#user .ranking li")).to_have_count(10)
    world.twin.store.available = world.twin.presence.available = False
    expect(page.locator("#alerts")).to_contain_text("Redis does not answer. Users cannot be ranked")
    expect(page.locator("#status")).to_have_text("Without Redis")
    expect(page.locator("#user .note").first).to_contain_text("Not known now: unavailable")
    expect(page.locator("#user .result")).to_have_class(re.compile("stale"))
    world.twin.store.available = world.twin.presence.available = True
    expect(page.locator("#alerts")).to_be_empty()
    expect(page.locator("#user .result")).not_to_have_class(re.compile("stale"))
    expect(page.locator("#status")).to_have_text("Live")


def test_a_server_that_is_gone_makes_the_page_stale_until_it_is_back(visit):
    one = visit(past(), allow=("Failed to load resource",))
    page = one.page
    expect(page.locator("#status")).to_have_text("Live")
    page.route("**/v1/**", lambda route: route.abort())
    expect(page.locator("#alerts")).to_contain_text("This recommender cannot be asked: the server does not answer")
    expect(page.locator("#status")).to_contain_text(re.compile("Reconnecting, data of [5-9].*s ago"), timeout=15_000)
    expect(page.locator("#main")).to_have_class(re.compile("stale-page"))
    page.unroute("**/v1/**")
    expect(page.locator("#status")).to_have_text("Live", timeout=15_000)
    expect(page.locator("#alerts")).to_be_empty()
