"""The console on twins in memory, served over a real socket, and a Chromium that looks at it."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import uvicorn
from playwright.sync_api import Browser, Page, Route, sync_playwright

from shared.adapters.registry_notes import encode_note, name_of
from shared.core.drift import Alarm, DriftMonitor, DriftRules
from shared.core.engagement import EngagementBatch, encode_engagement, engagement_batch
from shared.core.registry_port import Note
from tests.servers import free_port, until
from tests.unit.recommender_twins import ITEMS, Twin, weights

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
"""Debian's own: nothing is downloaded for it."""
GATE = {
    "decision": "kept back", "reason": "better than champion 1 by 0.5% with confidence 0.610, less than 0.95",
    "events": 4213, "challenger": {"recall20": 0.213}, "champion": {"version": "1", "recall20": 0.209},
    "popularity": {"recall20": 0.084}, "over_champion": {"confidence": 0.61},
}  # fmt: skip


class World:
    """A twin with a past: outcomes and notes of some time ago, told as consumers and retrainer tell them."""

    def __init__(self, model: bool = True, **options: object) -> None:
        self.twin = Twin(model=model, **options)
        self.monitor = DriftMonitor(DriftRules(least_events=300, cooldown_s=60))
        self._offset = 0
        self._rng = random.Random(7)

    def outcomes(
        self, version: str, share: float, ago_s: tuple[float, float], per_s: int = 20, strategy: str = "gru"
    ) -> list[Alarm]:
        """One batch a second; the alarms that the retrainer's own monitor gives of them."""
        now_ms, alarms = int(time.time() * 1000), []
        for second in range(int(ago_s[0]), int(ago_s[1]), -1):
            at = now_ms - 1000 * second
            batch = self._batch(version, share, per_s, at, strategy)
            self.twin.broker.append("engagement", version.encode(), encode_engagement(batch), timestamp=at, partition=0)
            _, alarm = self.monitor.take(batch, at)
            if alarm is not None:
                alarms.append(alarm)
        return alarms

    def _batch(self, version: str, share: float, count: int, at: int, strategy: str) -> EngagementBatch:
        first, self._offset = self._offset, self._offset + count
        ranks = [(first + n, self._rng.randint(1, 20) if self._rng.random() < share else 0) for n in range(count)]
        return engagement_batch((version, strategy), 0, 1, (first, self._offset), count, ranks, at, {})

    def note(self, kind: str, details: Mapping[str, Any], ago_s: float) -> None:
        """In the registry's journal, as if written then."""
        at = int((time.time() - ago_s) * 1000)
        note = Note(f"{at:015d}-{uuid.uuid4().hex[:12]}", at, kind, dict(details))
        self.twin.registry._notes[name_of(note)] = encode_note(note)

    def interactions(self, count: int, taken: bool = True) -> None:
        """In the topic; taken: consumers have them in the states."""
        for n in range(count):
            record = self.twin.broker.append("interactions", b"u%d" % n, b"{}")
            if taken:
                self.twin.broker.committed["group", "interactions", record.partition] = record.offset + 1


def past(shift: bool = True) -> World:
    """A champion whose engagement fell four minutes ago, with what the retrainer noted of it."""
    world = World()
    world.monitor.champion = "1"
    world.outcomes("1", 0.45, (800, 240), 20)
    if shift:
        alarms = world.outcomes("1", 0.10, (240, 0), 20)
        assert alarms, "the retrainer's monitor sees no shift in these outcomes"
        world.note("alarm", {name: getattr(alarms[0], name) for name in alarms[0].__struct_fields__}, 200)
        world.note("training", {"reason": "drift", "outcome": "kept back", "version": "2", "seconds": 30.0}, 131)
        world.note("gate", {"version": "2", **GATE}, 130)
        lineage = {"parent": "1", "trained_at": int(time.time() * 1000) - 130_000, "train_s": 30.0, "events": 2000}
        world.twin.registry.publish(weights(3), ITEMS, metrics={"gate": GATE}, lineage=lineage, make_current=False)
    world.interactions(50)
    world.twin.popular(0, "item-3", "item-3", "item-7")
    world.twin.act("ada", "item-1", "item-2", ts=int(time.time() * 1000) - 65_000)
    return world


@contextlib.contextmanager
def served(world: World) -> Iterator[str]:
    """The address of the world's recommender; everything stops at the end."""
    port = free_port()
    config = uvicorn.Config(world.twin.app, host="127.0.0.1", port=port, lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    world.twin.console.start()
    try:
        until(lambda: server.started, 20, "the server")
        yield f"http://127.0.0.1:{port}/"
    finally:
        world.twin.console.stop()
        server.should_exit = True
        thread.join(10)
        world.twin.stop()


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Headless."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


class Visit:
    """A page with what it did besides being looked at: console messages, and requests to elsewhere."""

    def __init__(self, browser: Browser, address: str, **options: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        self.page: Page = self.context.new_page()
        self.said: list[str] = []
        self.elsewhere: list[str] = []
        self.allowed: tuple[str, ...] = ()
        self.page.on("console", lambda message: message.type in ("error", "warning") and self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.address = address
        self.context.route(lambda url: not url.startswith(address), self._refuse)
        self.page.goto(address)

    def _refuse(self, route: Route) -> None:
        self.elsewhere.append(route.request.url)
        route.abort()

    def close(self) -> None:
        self.context.close()


def turns(page: Page, count: int) -> None:
    """Until the page was told so many times what is new, and has drawn all but perhaps the last."""
    for _ in range(count + 1):
        page.wait_for_event("response", lambda response: "/v1/console" in response.url)
