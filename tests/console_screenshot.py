"""The console's picture for the README, of a real run: ``python -m tests.console_screenshot [FILE.png]``.

The whole system with simulated shoppers: a first model, a shift of taste, an alarm, a training, the swap; then the page
is opened in Chromium, a user looked up, a session tried. Takes about five minutes.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import httpx
from PIL import Image

from services.simulator.demo.circle import SETTINGS
from services.simulator.shoppers import Shoppers
from shared.adapters.embedded import recognise
from shared.adapters.kafka import KafkaPublisher
from shared.adapters.settings import KafkaSettings
from shared.core.events import Interaction, encode
from tests.console_world import CHROMIUM, Visit, chromium
from tests.servers import ROOT
from tests.stack_process import StackProcess

PICTURE = ROOT / "services" / "recommender" / "console" / "console.png"
RATE = 250.0
STEADY_S = 100.0
AFTER_S = 45.0
COLOURS = 256


class Crowd:
    """Shoppers who act at a rate, while one waits for something."""

    def __init__(self, kafka: str, rate: float) -> None:
        self.shoppers = Shoppers(seed=3)
        settings = recognise(KafkaSettings(kafka_bootstrap_servers=kafka))
        self._publisher, self._topic, self._rate = KafkaPublisher(settings), settings.topic_interactions, rate
        self.last = ""

    def until(self, probe, seconds: float, what: str) -> None:
        """Act on; raises where it takes longer."""
        print(f"{time.strftime('%H:%M:%S')} {what}", flush=True)
        began, count = time.monotonic(), 0
        while not probe():
            assert time.monotonic() - began < seconds, f"not within {seconds:g} s: {what}"
            target = int((time.monotonic() - began) * self._rate)
            for _ in range(count, target):
                action = self.shoppers.next()
                now = time.time_ns() // 1_000_000
                event = Interaction(action.user_id, action.item_id, action.event_type, now, None, action.session_id)
                self._publisher.send(self._topic, action.user_id.encode(), encode(event))
                self.last = action.user_id
            count = target
            self._publisher.flush(30)

    def act(self, seconds: float, what: str) -> None:
        """For so long."""
        end = time.monotonic() + seconds
        self.until(lambda: time.monotonic() > end, seconds + 30, what)


def take(address: str, crowd: Crowd, picture: Path) -> None:
    """Open the page, use it, and keep what is seen, in few colours."""
    with chromium() as browser:
        visit = Visit(browser, address, viewport={"width": 1280, "height": 1000}, reduced_motion="reduce")
        page = visit.page
        page.wait_for_selector(".model")
        crowd.act(20, "people act, the page is open")
        page.get_by_label("User id").fill(crowd.last)
        page.keyboard.press("Enter")
        page.wait_for_selector("#session .pick")
        for place in (0, 2, 1):
            page.locator("#session .pick").nth(place).click()
            crowd.act(2, "a session is tried")
        page.get_by_role("heading", name="Models").hover()
        page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
        crowd.act(2, "the picture")
        page.screenshot(path=picture, full_page=True)
        assert not visit.said, visit.said
        visit.close()
    image = Image.open(picture).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    image.save(picture, optimize=True)
    print(f"{picture}: {picture.stat().st_size / 1000:.0f} kB")


def main(picture: Path) -> None:
    """See the module."""
    assert CHROMIUM is not None, "no chromium: apt-get install chromium"
    with tempfile.TemporaryDirectory(prefix="console-") as folder, StackProcess(Path(folder), **SETTINGS) as stack:
        ready = stack.ready()
        http = httpx.Client(base_url=str(ready["http"]), timeout=10)

        def kinds() -> list[str]:
            return [event["kind"] for event in http.get("/v1/models").json()["events"]]

        crowd = Crowd(str(ready["kafka"]), RATE)
        crowd.until(lambda: "swap" in kinds(), 400, "the first model")
        crowd.act(STEADY_S, "steady")
        crowd.shoppers.shift()
        crowd.until(lambda: kinds().count("swap") > 1, 400, "another taste, up to the swap")
        crowd.act(AFTER_S, "the new model in service")
        picture.parent.mkdir(parents=True, exist_ok=True)
        take(str(ready["http"]) + "/", crowd, picture)
        http.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE)
