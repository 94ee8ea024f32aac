"""Simulated shoppers on a running system, without an end: ``python -m services.simulator.shop``.

They act at an even rate, ask for their ranking before each action, and their taste shifts on the clock, at every
multiple of SHOP_SHIFT_S: so one who starts again goes on with the taste of before, and several shops agree. Every ten
seconds a line says how many of the next actions were in the ranking. A broker that is lost ends the process: whoever
runs it starts it again.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time

from pydantic import ValidationError

from services.simulator.demo.client import RankingClient
from services.simulator.demo.measure import Board, Hits
from services.simulator.demo.sources import ShopperSource
from services.simulator.demo.streamer import Freshness, Streamer
from services.simulator.keep_up import keep_up
from services.simulator.shop_settings import ShopSettings
from shared.adapters.embedded import recognise
from shared.adapters.health import HealthServer
from shared.adapters.kafka import KafkaPublisher
from shared.adapters.logs import configure_logging
from shared.adapters.settings import KafkaSettings, LoggingSettings
from shared.core.errors import DriftwoodError

log = logging.getLogger("driftwood.shop")

_TICK_S = 0.25
_REPORT_S = 10.0


def shifts_until(now_s: float, every_s: float) -> int:
    """How often taste has shifted since the epoch; 0 where it never does."""
    return int(now_s // every_s) if every_s else 0


class Shop:
    """The shoppers and what is known of them. ``run`` until ``stop`` is set."""

    def __init__(self, settings: ShopSettings, streamer: Streamer, freshness: Freshness, source: ShopperSource) -> None:
        self._settings, self._source, self.board = settings, source, streamer.board
        self._workers: tuple[Streamer, Freshness] = (streamer, freshness)
        self._shifts = source.shifts
        self._reported = 0
        self.stop = threading.Event()

    def ready(self) -> tuple[bool, dict[str, object]]:
        """For /readyz."""
        failure = self.board.failure
        return failure is None, {"stream": str(failure) if failure else "ok", "published": self.board.events.count}

    def run(self) -> int:
        """The exit code: 1 when the stream broke."""
        report_at = time.monotonic() + _REPORT_S
        for worker in self._workers:
            worker.start()
        while not self.stop.wait(_TICK_S) and self.board.failure is None:
            self.look_at_the_clock(time.time())
            if time.monotonic() >= report_at:
                report_at += _REPORT_S
                self.report()
        for worker in self._workers:
            worker.halt.set()
        for worker in self._workers:
            worker.join(_REPORT_S)
        if self.board.failure is not None:
            log.error("the stream broke: %s", self.board.failure)
        return 1 if self.board.failure is not None else 0

    def look_at_the_clock(self, now_s: float) -> None:
        """Shift the taste when it is time to."""
        due = shifts_until(now_s, self._settings.shop_shift_s)
        if due > self._shifts:
            self._shifts = due
            self._source.shift_to(due)
            log.info("taste shifts", extra={"shifts": due})

    def report(self) -> None:
        """One line about the time since the last, and count anew: without an end, what is kept must not grow."""
        board, hits = self.board, self.board.hits.total
        board.hits, board.whole = Hits(), Hits()
        board.freshness_ms.clear()
        events, self._reported = board.events.count - self._reported, board.events.count
        details: dict[str, object] = {"events": events, "unanswered": board.unanswered}
        board.unanswered = 0
        if hits.actions:
            details |= {"hits_in_top_20": round(hits.held_share, 3), "of_trending": round(hits.trending_share, 3)}
            details["model_version"] = board.model_version
        log.info("shoppers act", extra=details)


def build(settings: ShopSettings) -> tuple[Shop, KafkaPublisher]:
    """The shop on the broker of the settings. Raises Unavailable."""
    kafka = recognise(KafkaSettings())
    publisher = KafkaPublisher(kafka)
    source = ShopperSource(settings.shop_seed, shifts_until(time.time(), settings.shop_shift_s))
    key = settings.shop_api_key.get_secret_value()
    freshness = Freshness(Board(), RankingClient(settings.shop_http, key))
    client, limiter = RankingClient(settings.shop_http, key), keep_up(kafka, 0)
    streamer = Streamer(source, publisher, kafka.topic_interactions, client, freshness, limiter)
    streamer.rate, streamer.asking, streamer.history = settings.shop_rate, bool(settings.shop_http), None
    return Shop(settings, streamer, freshness, source), publisher


def main() -> int:
    """Run until SIGTERM or SIGINT; the exit code."""
    try:
        settings = ShopSettings()
        configure_logging(LoggingSettings())
        shop, publisher = build(settings)
    except ValidationError as error:
        print(f"settings: {error}", file=sys.stderr)
        return 2
    except DriftwoodError as error:
        print(f"shop: {error}", file=sys.stderr)
        return 1
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: shop.stop.set())
    health = HealthServer(settings.shop_host, settings.shop_port, shop.ready)
    health.start()
    log.info("shoppers arrive", extra={"rate": settings.shop_rate, "port": health.port})
    code = shop.run()
    health.stop()
    publisher.close()
    return code


if __name__ == "__main__":
    sys.exit(main())
