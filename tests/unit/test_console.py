"""What the console tells: engagement over time, live numbers of all recommenders, and why a user gets what they get."""

from __future__ import annotations

import json
import time
from importlib import resources

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from services.recommender.api_keys import KeyRing, keys_of_setting
from services.recommender.console import page, watch
from services.recommender.console.engagement import BUCKET_S, KEEP_S, EngagementHistory
from services.recommender.console.live import Live, Rate
from services.recommender.console.watch import PresenceWatch, StreamWatch, Turns
from services.recommender.guard import HttpRules
from services.recommender.metrics import RecommenderMetrics
from services.recommender.recent import RecentUpdates
from shared.adapters.memory import MemoryBroker
from shared.adapters.presence import MemoryPresence
from shared.adapters.stream_end import MemoryStreamEnd
from shared.adapters.topic_tail import MemoryTopicTail
from shared.core.engagement import encode_engagement, engagement_batch
from shared.core.ranking import StateUpdate, encode_update
from tests.unit.recommender_twins import Twin


@pytest.fixture
def twin():
    twin = Twin()
    yield twin
    twin.stop()


def batch(version, covered, ranks, strategy="gru"):
    outcomes = list(zip(range(*covered), ranks, strict=True))
    return engagement_batch((version, strategy), 0, 1, covered, len(ranks), outcomes, 0, {})


def told(twin, query=""):
    response = twin.call("GET", f"/v1/console{query}")
    assert response.status_code == 200, response.text
    return json.loads(response.content)


STEP_MS = 1000 * BUCKET_S


def test_outcomes_of_one_version_and_time_come_together_and_none_twice():
    history = EngagementHistory()
    history.add(batch("1", (0, 4), [1, 0, 20, 2]), 7 * STEP_MS + 1)
    history.add(batch("1", (2, 6), [20, 2, 1, 0]), 7 * STEP_MS + 999)  # after a crash: 2 and 3 were told before
    history.add(batch("2", (0, 1), [0]), 8 * STEP_MS)
    history.add(batch("", (0, 1), [4], "trending"), 8 * STEP_MS)
    series = history.series(6 * STEP_MS, BUCKET_S, 10)
    assert [(s.version, s.points) for s in series] == [
        ("", [(2, 1, 1, 0, 0.25)]),
        ("1", [(1, 6, 4, 2, 2.55)]),
        ("2", [(2, 1, 0, 0, 0.0)]),
    ]


def test_longer_steps_hold_the_sum_of_shorter_ones_and_only_the_window_counts():
    history = EngagementHistory()
    for n in range(12):
        history.add(batch("1", (n, n + 1), [1]), n * STEP_MS)
    assert history.series(4 * STEP_MS, 4 * BUCKET_S, 1)[0].points == [(0, 4, 4, 4, 4.0)]
    assert history.series(0, 4 * BUCKET_S, 3)[0].points == [(n, 4, 4, 4, 4.0) for n in range(3)]


def test_what_is_older_than_the_longest_window_goes():
    history = EngagementHistory()
    for n in range(KEEP_S // BUCKET_S + 50):
        history.add(batch("1", (n, n + 1), [1]), n * STEP_MS)
    assert history.series(0, BUCKET_S, 50) == []
    assert len(history.series(50 * STEP_MS, BUCKET_S, KEEP_S // BUCKET_S)[0].points) == KEEP_S // BUCKET_S


def test_the_last_minute_is_of_the_newest_buckets_of_all_versions():
    history = EngagementHistory()
    for n in range(20):
        history.add(batch("1", (n, n + 1), [1 + n]), n * STEP_MS)
    history.add(batch("2", (0, 2), [0, 20]), 19 * STEP_MS)
    last = history.last(19 * STEP_MS + 1, 60)
    assert (last.count, last.hits, last.first) == (12 + 2, 12 + 1, 0)
    assert history.last(31 * STEP_MS, 60).count == 0


def test_the_last_minute_is_the_same_in_every_window(twin):
    now_ms = int(time.time() * 1000)
    for at, covered, ranks in ((90_000, (0, 2), [1, 1]), (30_000, (2, 5), [1, 0, 20])):
        value = encode_engagement(batch("1", covered, ranks))
        twin.broker.append("engagement", b"1", value, timestamp=now_ms - at, partition=0)
    twin.console.look()
    views = [told(twin, f"?window={seconds}") for seconds in (900, 3600, KEEP_S)]
    assert [view["last_minute"] for view in views] == [{"count": 3, "hits": 2}] * 3
    assert all(view["engagement"]["complete"] for view in views)


def test_a_rate_is_of_the_last_seconds_and_begins_anew_where_the_number_falls():
    now = 0.0
    rate = Rate(lambda: now)
    assert rate.see(100) is None
    for _ in range(20):
        now += 1
        held = rate.see(100 + 10 * now)
    assert held == pytest.approx(10)
    now += 1
    assert rate.see(3) is None  # the topic was made anew
    now += 1
    assert rate.see(5) == pytest.approx(2)


def test_the_page_is_told_what_consumers_and_retrainer_told(twin):
    now_ms = int(time.time() * 1000)
    value = encode_engagement(batch("1", (0, 3), [1, 0, 20]))
    twin.broker.append("engagement", b"1", value, timestamp=now_ms - 60_000)
    twin.broker.append("engagement", b"1", b"no engagement", timestamp=now_ms)
    for n in range(5):
        twin.broker.append("interactions", b"u%d" % n, b"{}")
    twin.registry.note("alarm", {"version": "1", "before": 0.5, "after": 0.2})
    twin.console.look()
    view = told(twin)
    assert [(s["version"], [p[1:3] for p in s["points"]]) for s in view["engagement"]["series"]] == [("1", [[3, 2]])]
    at = (
        view["engagement"]["from_ms"]
        + 1000 * view["engagement"]["step_s"] * view["engagement"]["series"][0]["points"][0][0]
    )
    assert at <= now_ms - 60_000 < at + 1000 * view["engagement"]["step_s"]
    assert (view["now"]["events_total"], view["now"]["lag"]) == (5, 5)
    assert [(mark["kind"], mark["details"]["before"]) for mark in view["marks"]] == [("alarm", 0.5)]
    assert (view["champion"], view["loaded"], view["problems"]) == ("1", "1", {})
    longest = told(twin, f"?window={KEEP_S}")["engagement"]
    assert longest["steps"] * longest["step_s"] == KEEP_S


@pytest.mark.parametrize("window", ["", "0", "901", "-900", "9e2", "x" * 500, "9" * 500])
def test_a_window_that_there_is_not_is_refused_by_name(twin, window):
    response = twin.call("GET", f"/v1/console?window={window}")
    assert response.status_code == 422
    assert response.json()["details"][0]["field"] == "window"


class LongTail:
    """The engagement of hours: so many times all that is given in one go, which takes a tenth of a second."""

    def __init__(self, times: int) -> None:
        self.times, self.now = times, 0.0
        self.waited: list[float] = []
        self.rests: list[float] = []

    def poll(self, timeout_s: float, max_records: int) -> list[object]:
        self.waited.append(timeout_s)
        self.now += 0.1
        self.times -= 1
        return [MemoryBroker(1).append("engagement", b"1", b"", timestamp=1)] * max_records if self.times >= 0 else []

    def left(self) -> int:
        return max(0, self.times) * watch._MAX_RECORDS

    def rest(self, seconds: float) -> None:
        self.rests.append(seconds)
        self.now += seconds

    def close(self) -> None:
        """Nothing to give back."""


def test_the_last_hours_are_read_in_turns_with_rests():
    tail, lags = LongTail(12), []
    stream = MemoryStreamEnd(MemoryBroker(1), "group", "interactions")
    stepped = StreamWatch(
        lambda: tail, lambda: stream, EngagementHistory(), Live(), lags.append, tail.rest, lambda: tail.now
    )
    for turn in (1, 2):
        stepped.step()
        assert (tail.times, stepped.reads, len(lags)) == (12 - 5 * turn, True, turn)  # 5 in a second and a half
    assert tail.rests == pytest.approx([0.2] * 10)
    assert set(tail.waited) == {0.5}
    stepped.step()
    assert (tail.times, stepped.reads) == (-1, False)
    tail.times, tail.rests, tail.waited = 3, [], []
    stepped.step()
    assert (tail.rests, set(tail.waited)) == ([], {0.05})  # what follows is taken at once


def test_the_page_is_told_while_the_last_hours_are_read(twin, monkeypatch):
    monkeypatch.setattr(watch, "_READ_S", 0.0)
    monkeypatch.setattr(watch, "_MAX_RECORDS", 1)
    for n in range(3):
        twin.broker.append("engagement", b"1", encode_engagement(batch("1", (n, n + 1), [1])), timestamp=1, partition=0)
    twin.console.look()
    assert not told(twin)["engagement"]["complete"]
    monkeypatch.setattr(watch, "_READ_S", 10.0)
    twin.console.look()
    assert json.loads(msgspec.json.encode(twin.console.view(900)))["engagement"]["complete"]


def test_prometheus_is_told_the_lag_while_the_broker_tells_it():
    registry = CollectorRegistry()
    metrics, broker, live = RecommenderMetrics(registry), MemoryBroker(2), Live()
    seen = StreamWatch(
        lambda: MemoryTopicTail(broker, "engagement", 10),
        lambda: MemoryStreamEnd(broker, "group", "interactions"),
        EngagementHistory(),
        live,
        lambda lag: metrics.stream_lag("group", lag),
    )
    turns = Turns("kafka", seen.step, seen.failed, 1.0)
    lag = lambda: registry.get_sample_value("driftwood_stream_lag_records", {"group": "group"})  # noqa: E731
    assert lag() is None
    for n in range(3):
        broker.append("interactions", b"u%d" % n, b"{}")
    broker.append("engagement", b"1", b"{}")
    turns.turn()
    assert lag() == 3
    broker.available = False
    turns.turn()
    assert lag() is None
    broker.available = True
    broker.delete("engagement")
    turns.turn()
    assert "no topic 'engagement'" in turns.problem
    assert lag() == 3, "the lag does not hang on engagement"


def test_what_is_away_is_named_and_what_was_known_of_it_is_not_told_as_of_now(twin):
    twin.broker.append("interactions", b"u", b"{}")
    twin.console.look()
    twin.broker.available = twin.presence.available = False
    twin.problem = "the newest model is damaged"
    twin.console.look()
    view = json.loads(msgspec.json.encode(twin.console.view(900)))
    assert set(view["problems"]) == {"kafka", "redis", "model"}
    assert "switched off" in view["problems"]["kafka"]
    assert view["now"]["events_total"] is view["now"]["lag"] is view["now"]["http_per_s"] is None
    twin.broker.available = twin.presence.available = True
    twin.console.look()
    view = json.loads(msgspec.json.encode(twin.console.view(900)))
    assert (set(view["problems"]), view["now"]["events_total"]) == ({"model"}, 1)


def test_each_recommender_shows_the_rankings_of_all(twin):
    other = RecentUpdates()
    other.note({"ada": StateUpdate(["ada"], written_at=1030, arrived_at=1000)}, 1100)
    clock = 0.0
    given = {"http": 0.0}
    live = twin.live
    beside = PresenceWatch(MemoryPresence(twin.presence, "other", 10), lambda: given, other, True, live, lambda: clock)
    beside.step()
    clock, given = 2.0, {"http": 60.0}
    beside.step()
    twin.console.look()
    assert live.now.recommenders == 2
    assert live.now.http_per_s == pytest.approx(30)
    assert live.now.state_ms == live.now.state_ms.__class__(30, 30, 1)
    assert live.now.ranking_ms.p50 == 100


def test_an_event_is_followed_from_the_broker_to_the_ranking_on_the_topic(twin):
    twin.act("ada", "item-1")
    now_ms = int(time.time() * 1000)
    update = StateUpdate(["ada"], written_at=now_ms - 40, arrived_at=now_ms - 60)
    twin.broker.append("state-updates", b"0", encode_update(update), partition=0)
    twin.broker.append("state-updates", b"0", encode_update(StateUpdate(["swept"])), partition=0)
    assert twin.emitter.round() == 2
    in_redis, on_topic = twin.emitter.recent.ages(60)
    assert in_redis == [20]
    assert on_topic[0] >= 60
    assert twin.emitter.recent.users() == ["ada"]
    forgotten = encode_update(StateUpdate(["ada"], forgotten=True, written_at=1))
    twin.broker.append("state-updates", b"0", forgotten, partition=0)
    twin.emitter.round()
    assert twin.emitter.recent.users() == []


def test_a_tail_begins_with_the_newest_and_sees_partitions_that_are_added():
    broker = MemoryBroker(1)
    broker.create("t")
    for n in range(10):
        broker.append("t", b"k", b"%d" % n)
    tail = MemoryTopicTail(broker, "t", 3)
    assert [r.value for r in tail.poll(0, 2)] == [b"7", b"8"]
    assert [r.value for r in tail.poll(0, 2)] == [b"9"]
    broker.add_partitions("t", 2)
    broker.append("t", b"k", b"new", partition=1)
    assert [r.value for r in tail.poll(0, 9)] == [b"new"]


def user(twin, name):
    response = twin.call("GET", f"/v1/users/{name}")
    assert response.status_code == 200, response.text
    return response.json()


def test_a_user_with_a_state(twin):
    then = int(time.time() * 1000) - 5000
    twin.act("a/ü", "item-1", "unheard-of", "item-2", ts=then)
    twin.dismiss("a/ü", "item-9", until_s=time.time() + 60)
    view = user(twin, "a%2F%C3%BC")
    assert view["user_id"] == "a/ü"
    assert (view["recent_items"], view["events"]) == (["item-1", "unheard-of", "item-2"], 3)
    assert (view["last_event_at"], view["dismissed"]) == (then, 1)
    assert 5000 <= view["state_age_ms"] < 60_000
    assert (view["strategy"], view["why"], view["model_version"]) == ("gru", None, "1")
    assert (view["state_model_version"], view["state_is_current"]) == ("1", True)
    twin.publish(2)
    view = user(twin, "a%2F%C3%BC")
    assert (view["state_model_version"], view["state_is_current"], view["model_version"]) == ("1", False, "2")


def test_why_a_user_gets_what_is_trending_and_that_it_is_so(twin):
    twin.act("stranger", "no-item-of-the-model")
    twin.store.users["broken"] = b"\0" * 60
    twin.dismiss("wary", "item-9", until_s=time.time() + 60)
    for name, code in (("nobody", "unknown_user"), ("stranger", "no_known_item"), ("broken", "state_damaged"),
                       ("wary", "no_events")):  # fmt: skip
        view = user(twin, name)
        assert (view["why"]["code"], view["strategy"], view["known"]) == (code, "trending", name != "nobody")
        assert twin.ranking(name)["strategy"] == "trending"


def test_without_a_model_that_is_why():
    twin = Twin(model=False)
    twin.act("ada", "item-1")
    assert user(twin, "ada")["why"]["code"] == "no_champion"
    assert user(twin, "nobody")["why"]["code"] == "unknown_user"
    twin.stop()


def test_a_user_cannot_be_looked_up_without_redis_or_a_name(twin):
    assert twin.call("GET", "/v1/users/").status_code == 422
    twin.store.available = False
    response = twin.call("GET", "/v1/users/ada")
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")


def test_the_page_needs_no_key_but_all_that_it_asks_for_does():
    twin = Twin(http=HttpRules(KeyRing(keys_of_setting("secret"), needed=True)))
    for path in page.PATHS:
        assert twin.call("GET", path).status_code == 200, path
    for path in ("/v1/console", "/v1/users/ada", "/v1/models"):
        assert twin.call("GET", path).status_code == 401
        assert twin.call("GET", path, headers={"X-API-Key": "secret"}).status_code == 200
    twin.stop()


def test_the_page_is_kept_to_this_server_and_asked_about_each_time(twin):
    first = twin.call("GET", "/")
    policy = first.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in first.text.replace("http-equiv", "")
    again = twin.call("GET", "/", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_every_file_of_the_page_is_served():
    folder = resources.files("services.recommender.console") / "static"
    assert {file.name for file in folder.iterdir()} == {*page.NAMES, page.INDEX}


def test_without_the_console_the_first_page_is_that_of_the_api():
    twin = Twin(console=None)
    response = twin.call("GET", "/")
    assert response.headers["location"] == "docs"
    assert twin.call("GET", "/v1/console").status_code == 404
    twin.stop()
