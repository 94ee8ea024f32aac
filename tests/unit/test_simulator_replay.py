"""The replay without a broker: what is published, when, and how it stops."""

from __future__ import annotations

import json
import threading

import polars as pl
import pytest

from services.simulator import keep_up as keep_up_module
from services.simulator.keep_up import KeepUp
from services.simulator.pace import Pace
from services.simulator.replay import Progress, interactions, publish, select
from services.simulator.replay_flags import parse
from services.simulator.report import StreamReport
from shared.adapters.memory import MemoryBroker, MemoryPublisher
from shared.core.errors import SettingsInvalid, Unavailable
from shared.core.events import EventRules, decode

LOG = pl.DataFrame(
    {
        "session_id": ["s1", "s2", None, "s1", "s1"],
        "user_id": ["a", "b", "c", "a", "a"],
        "item_id": ["x", "y", "x", "z", "z"],
        "ts": [1_500_000_000_000 + 1000 * n for n in range(5)],
        "event_type": ["view"] * 5,
    }
)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Lag:
    """The lag that a consumer shows at each look."""

    def __init__(self, *lags: int) -> None:
        self.lags = list(lags)

    def lag(self) -> int:
        return self.lags.pop(0) if len(self.lags) > 1 else self.lags[0]

    def close(self) -> None:
        pass


def flags(*arguments: str):
    return parse(["--data", "log.csv", *arguments], "")


def run(rows: pl.DataFrame, progress: Progress | None = None, **options) -> MemoryBroker:
    broker = MemoryBroker()
    broker.create("interactions")
    progress = progress or Progress()
    with StreamReport(rows.height) as report:
        limiter = KeepUp(None, 0, "group")
        publisher = MemoryPublisher(broker)
        publish(interactions(rows), publisher, "interactions", Pace(), progress, report, limiter, **options)
    return broker


def published(broker: MemoryBroker) -> list[dict[str, object]]:
    return sorted((json.loads(r.value or b"") for r in broker.records("interactions")), key=lambda v: v["ts"])


def test_every_row_becomes_a_good_event_with_its_own_time_and_key():
    progress = Progress()
    broker = run(select(LOG, flags()), progress)
    values = published(broker)
    assert [(v["user_id"], v["item_id"], v["ts"]) for v in values] == list(
        LOG.select("user_id", "item_id", "ts").rows()
    )
    assert "session_id" not in values[2]
    assert progress.confirmed == progress.sent == 5
    for record in broker.records("interactions"):
        event = decode(record.value, 1_800_000_000_000, EventRules())
        assert record.key == event.user_id.encode()


def test_event_ids_are_the_same_whatever_part_is_replayed():
    whole = {v["ts"]: v["event_id"] for v in published(run(select(LOG, flags())))}
    part = {v["ts"]: v["event_id"] for v in published(run(select(LOG, flags("--offset", "2"))))}
    assert len(set(whole.values())) == 5
    assert part == {ts: whole[ts] for ts in part}


@pytest.mark.parametrize(
    ("arguments", "rows"),
    [
        (["--limit", "2"], [0, 1]),
        (["--offset", "3"], [3, 4]),
        (["--from", "2017-07-14T02:40:01", "--to", "1500000003000"], [1, 2]),
        (["--from", "2017-07-14T02:40:01Z", "--offset", "1", "--limit", "1"], [2]),
        (["--offset", "9"], []),
    ],
)
def test_parts_of_a_log(arguments: list[str], rows: list[int]):
    assert select(LOG, flags(*arguments))["row"].to_list() == rows


def test_restamped_events_keep_id_and_order():
    values = published(run(select(LOG, flags()), restamp=True))
    assert min(v["ts"] for v in values) > 1_700_000_000_000
    ids = {v["event_id"] for v in values}
    assert ids == {v["event_id"] for v in published(run(select(LOG, flags())))}


def test_a_stop_ends_before_the_next_event():
    progress = Progress()
    progress.stop.set()
    assert run(select(LOG, flags()), progress).records("interactions") == []
    assert progress.confirmed == 0


def test_pace_at_a_rate_catches_up():
    clock = Clock()
    pace = Pace(rate=10, clock=clock)
    assert pace.wait_s(0) == 0
    assert pace.wait_s(0) == pytest.approx(0.1)
    clock.now += 0.25  # late
    assert pace.wait_s(0) == 0
    assert pace.wait_s(0) == pytest.approx(0.05)


def test_pace_in_the_logs_own_time():
    pace = Pace(speed=60, clock=Clock())
    assert [pace.wait_s(ts) for ts in (1000, 61_000, 31_000)] == pytest.approx([0, 1, 0.5])


def test_pace_without_waiting():
    assert [Pace(clock=Clock()).wait_s(ts) for ts in (1, 10**9)] == [0, 0]


def test_a_pace_is_a_rate_or_a_speed():
    with pytest.raises(ValueError, match="one of them"):
        Pace(rate=1, speed=1)


def test_replay_waits_for_the_consumer():
    notes: list[str] = []
    KeepUp(Lag(900, 900, 500, 90), 100, "group").wait(threading.Event(), notes.append)
    assert notes == ["waiting: the consumer is 900 behind", "waiting: the consumer is 500 behind"]


def test_a_consumer_that_stands_still_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(keep_up_module, "_STUCK_S", 0.0)
    with pytest.raises(Unavailable, match="group movers is 900 events behind"):
        KeepUp(Lag(900), 100, "movers").wait(threading.Event(), lambda note: None)


def test_columns_are_ours_and_theirs():
    assert flags("--column", "user_id=visitor", "--column", "ts=when").columns == {"user_id": "visitor", "ts": "when"}
    with pytest.raises(SettingsInvalid, match="OURS=THEIRS"):
        flags("--column", "visitor")


@pytest.mark.parametrize(
    "wrong", [["--rate", "-1"], ["--limit", "x"], ["--from", "noon"], ["--rate", "1", "--speed", "2"]]
)
def test_wrong_flags_end_with_usage(wrong: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        flags(*wrong)
    assert wrong[0] in capsys.readouterr().err
