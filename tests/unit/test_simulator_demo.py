"""What the demo measures and says, without its threads."""

from __future__ import annotations

import json

import pytest

from services.simulator.demo.client import parse_held, path_of
from services.simulator.demo.measure import BUCKET_S, Board, Hits, Rate, percentile, spark
from services.simulator.demo.sources import LogSource, ShopperSource
from services.simulator.demo.summary import summary
from shared.core.errors import LogUnreadable


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_percentile_is_the_nearest_rank():
    assert percentile([5, 1, 4, 2, 3], 0.5) == 3
    assert percentile([5, 1, 4, 2, 3], 0.99) == 5
    assert percentile([7], 0.5) == percentile([7], 0.99) == 7
    assert percentile(list(range(1, 101)), 0.99) == 99


def test_recent_shares_forget_and_totals_do_not():
    clock = Clock()
    hits = Hits(clock)
    hits.add(held=True, trending=False, by_model=True)
    clock.now = 20 * BUCKET_S
    hits.add(held=False, trending=True, unknown=True)
    hits.add(held=True, trending=False, by_model=True)
    assert (hits.total.actions, hits.total.held_share) == (3, pytest.approx(2 / 3))
    assert (hits.recent().actions, hits.recent().held_share, hits.recent().trending_share) == (2, 0.5, 0.5)
    assert (hits.by_model.actions, hits.by_model.held, hits.unknown) == (2, 2, 1)
    assert [share.actions for share in hits.curve(5)] == [1, 2]


def test_rate_is_of_the_last_seconds():
    clock = Clock()
    rate = Rate(clock)
    rates = []
    for second in range(1, 11):
        rate.add(100 if second <= 5 else 0)
        clock.now = float(second)
        rates.append(rate.per_second())
    assert rates[:5] == [100.0] * 5
    assert rates[-1] == 0.0


def test_spark_reaches_from_low_to_high():
    assert spark([0.0, 0.5, 1.0]) == "▁▅█"


def test_path_quotes_the_user():
    assert path_of("a b/ü?", 5) == "/v1/users/a%20b%2F%C3%BC%3F/recommendations?k=5"


def test_held_ranking_is_read():
    body = {
        "items": [{"item_id": "a", "score": 1}],
        "strategy": "gru",
        "model_version": "1",
        "as_of": 7,
        "user_id": "u",
    }
    held = parse_held(json.dumps(body).encode())
    assert (held.items, held.strategy, held.model_version, held.as_of) == (("a",), "gru", "1", 7)


def test_summary_compares_what_was_measured():
    board = Board()
    for held, trending in ((True, False), (True, True), (False, False), (True, False)):
        board.hits.add(held, trending, by_model=True)
    board.events.add(1000)
    board.freshness_ms += [10.0, 30.0, 20.0]
    text = "\n".join(summary(board, 400, 12.0))
    assert "1,000 events streamed in 12 s, the first 400 trained on" in text
    assert "p50 20 ms, p99 30 ms" in text
    assert "the ranking held for the user   75.0%" in text
    assert "trending                        25.0%" in text


def test_shoppers_are_good_events_with_ids_of_their_own():
    events = [ShopperSource(seed=1).next() for _ in range(2)] + [(source := ShopperSource(2)).next(), source.next()]
    assert all(event is not None and event.ts > 1_700_000_000_000 for event in events)
    assert events[2] is not None
    assert events[3] is not None
    assert events[2].event_id != events[3].event_id


def test_a_log_too_short_for_the_demo_is_refused(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id,ts\n" + "".join(f"u,i{n},{1_500_000_000_000 + n}\n" for n in range(50)))
    with pytest.raises(LogUnreadable, match="too few"):
        LogSource(str(path))


def test_a_log_is_streamed_in_order_and_partly_kept_for_serving(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id,ts\n" + "".join(f"u{n % 9},i{n},{1_500_000_000_000 - n}\n" for n in range(3000)))
    source = LogSource(str(path))
    assert source.plan.history == 1800
    times = []
    while (event := source.next()) is not None:
        times.append(event.ts)
    assert len(times) == 3000
    assert times == sorted(times)
