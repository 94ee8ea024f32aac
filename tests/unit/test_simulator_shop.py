"""The shop without an end: taste by the clock, and nothing that grows."""

from __future__ import annotations

import threading
from concurrent.futures import Future

from services.simulator.demo.client import RankingClient
from services.simulator.demo.measure import Board
from services.simulator.demo.sources import ShopperSource
from services.simulator.demo.streamer import Freshness, Streamer
from services.simulator.keep_up import KeepUp
from services.simulator.shop import Shop, shifts_until
from services.simulator.shop_settings import ShopSettings
from services.simulator.shoppers import Shoppers
from shared.adapters.memory import MemoryBroker, MemoryPublisher
from tests.servers import until


def shop_on(broker: MemoryBroker, settings: ShopSettings, shifts: int = 0) -> Shop:
    client = RankingClient(settings.shop_http)
    freshness = Freshness(Board(), client)
    source = ShopperSource(settings.shop_seed, shifts)
    streamer = Streamer(source, MemoryPublisher(broker), "interactions", client, freshness, KeepUp(None, 0, ""))
    streamer.rate, streamer.history = settings.shop_rate, None
    return Shop(settings, streamer, freshness, source)


def test_taste_shifts_at_multiples_of_the_period():
    assert [shifts_until(now, 900) for now in (0.0, 899.9, 900.0, 1800.0)] == [0, 0, 1, 2]
    assert shifts_until(1e9, 0) == 0


def test_one_that_starts_late_has_the_taste_of_one_that_was_there():
    there, late = Shoppers(seed=3), Shoppers(seed=3, shifts=2)
    there.shift()
    there.shift()
    assert late.shifts == there.shifts
    assert late._habits.followers == there._habits.followers
    assert Shoppers(seed=3, shifts=1)._habits.followers != there._habits.followers


def test_the_clock_is_followed_and_never_back():
    settings = ShopSettings(shop_shift_s=100.0)
    source = ShopperSource(1, 5)
    client = RankingClient("")
    freshness = Freshness(Board(), client)
    publisher = MemoryPublisher(MemoryBroker())
    shop = Shop(settings, Streamer(source, publisher, "t", client, freshness, KeepUp(None, 0, "")), freshness, source)
    for now, expected in ((599.0, 5), (600.0, 6), (580.0, 6), (800.0, 8)):
        shop.look_at_the_clock(now)
        assert source.shifts == expected


def running(shop: Shop) -> Future[int]:
    """The exit code to come."""
    code: Future[int] = Future()
    threading.Thread(target=lambda: code.set_result(shop.run()), daemon=True).start()
    until(lambda: shop.ready()[1]["published"] > 100, 30, "events")
    return code


def test_it_publishes_until_stopped_and_keeps_nothing_that_grows():
    broker = MemoryBroker()
    shop = shop_on(broker, ShopSettings(shop_rate=2000.0))
    code = running(shop)
    assert shop.ready()[0]
    board = shop.board
    board.hits.add(held=True, trending=False)
    board.freshness_ms.append(1.0)
    shop.report()
    assert (board.hits.total.actions, board.whole.total.actions, board.freshness_ms) == (0, 0, [])
    shop.stop.set()
    assert code.result(30) == 0
    assert len(broker.records("interactions")) == shop.ready()[1]["published"]


def test_a_broker_that_is_lost_ends_it():
    broker = MemoryBroker()
    shop = shop_on(broker, ShopSettings(shop_rate=2000.0))
    code = running(shop)
    broker.available = False
    assert code.result(30) == 1
    assert shop.ready()[0] is False
