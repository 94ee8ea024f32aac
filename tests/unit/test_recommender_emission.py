"""State updates to the recommendations topic: once per user and round, nothing lost, nothing committed too early."""

import json

import pytest

from services.recommender.cache import Entry, RankingCache
from services.recommender.emitter import Emitter, EmitterOptions
from services.recommender.queries import Ids
from shared.core.errors import Unavailable
from shared.core.ranking import StateUpdate, encode_update
from tests.servers import until
from tests.unit.recommender_twins import MemoryUpdates, Twin, ids


@pytest.fixture
def twin():
    twin = Twin()
    yield twin
    twin.stop()


def tell(twin, *users, partition=0):
    twin.broker.append(
        "state-updates", b"0", encode_update(StateUpdate(list(users), written_at=1)), partition=partition
    )


def published(twin):
    return {r.key.decode(): r.value and json.loads(r.value) for r in twin.broker.records("recommendations")}


def test_a_changed_state_gives_the_ranking_that_http_gives(twin):
    twin.act("u", "item-1")
    tell(twin, "u")
    assert twin.emitter.round() == 1
    ranking = published(twin)["u"]
    assert ranking["items"] == twin.ranking("u", "?k=5")["items"]
    assert ranking["user_id"] == "u"
    assert twin.metrics.cache.labels("hit")._value.get() == 1  # computed once for both


def test_many_changes_of_a_user_are_one_message(twin):
    for n in range(5):
        twin.act("u", f"item-{n}")
        tell(twin, "u", "v", partition=n % 4)
    twin.act("v", "item-1")
    assert twin.emitter.round() == 2
    assert [r.key for r in twin.broker.records("recommendations")].count(b"u") == 1
    assert twin.emitter.round() == 0


def test_who_has_no_events_is_removed(twin):
    twin.act("u", "item-1")
    tell(twin, "u", "never-seen")
    twin.emitter.round()
    assert published(twin)["never-seen"] is None
    assert twin.call("DELETE", "/v1/users/u").status_code == 204
    twin.emitter.round()
    assert published(twin)["u"] is None
    twin.act("u", "item-2")  # the user comes back
    tell(twin, "u")
    twin.emitter.round()
    assert ids(published(twin)["u"])


def test_what_a_poll_brought_before_the_next_one_failed_is_read_again(twin):
    for user in ("u", "v"):
        twin.act(user, "item-1")
    reader = MemoryUpdates(twin.broker, "state-updates")
    poll, polls = reader.poll, []

    def fails_the_second_time(timeout_s, most):
        polls.append(timeout_s)
        if len(polls) == 2:
            raise Unavailable("the broker went away between two polls")
        return poll(timeout_s, most)

    reader.poll = fails_the_second_time
    emitter = Emitter(
        lambda: reader, twin._connect, twin.ranker, Ids(), EmitterOptions("state-updates", "recommendations", 5, 0.05),
        twin.metrics,
    )  # fmt: skip
    tell(twin, "u")
    with pytest.raises(Unavailable):
        emitter.round()
    tell(twin, "v")
    assert emitter.round() == 2
    assert published(twin).keys() == {"u", "v"}


@pytest.mark.parametrize("away", ["store", "broker"])
def test_a_failed_round_is_done_again(twin, away):
    twin.act("u", "item-1")
    tell(twin, "u")
    assert twin.emitter.round() == 1
    twin.act("u", "item-2")
    tell(twin, "u")
    system = getattr(twin, away)
    committed = dict(twin.broker.committed)
    system.available = False
    with pytest.raises(Unavailable):
        twin.emitter.round()
    assert twin.broker.committed == committed
    system.available = True
    assert twin.emitter.round() == 1
    assert published(twin)["u"]["items"] == twin.ranking("u", "?k=5")["items"]


@pytest.mark.parametrize("error", [Unavailable("Kafka: away"), KeyError("a mistake of ours")])
def test_a_round_that_fails_is_counted_whatever_it_failed_for(twin, monkeypatch, error):
    def failing(self):
        raise error

    monkeypatch.setattr(Emitter, "round", failing)
    twin.emitter.start()
    counted = twin.metrics.emission_failures._value.get
    until(counted, 10, "a failure")
    twin.emitter.stop()
    assert counted() == 1
    assert twin.emitter.problem in (str(error), repr(error))


def test_acknowledged_but_not_committed_is_published_again(twin):
    twin.act("u", "item-1")
    tell(twin, "u")
    twin.emitter.round()
    tell(twin, "u")
    reader = twin.emitter._reader
    commit, reader.commit = reader.commit, lambda records: (_ for _ in ()).throw(Unavailable("gone"))
    with pytest.raises(Unavailable):
        twin.emitter.round()
    reader.commit = commit
    assert twin.emitter.round() == 1


def test_a_foreign_message_is_left_out(twin, caplog):
    twin.broker.append("state-updates", None, b"no update", partition=2)
    tell(twin, "u", partition=2)
    assert twin.emitter.round() == 1
    assert "not a state update" in caplog.text
    assert twin.broker.committed["g", "state-updates", 2] == 2


def test_the_cache_keeps_those_asked_for_last():
    cache = RankingCache(2)
    entry = Entry(b"12345678", 7, 0, None, None)
    for user in ("a", "b"):
        cache.put(user, entry)
    assert cache.get("a", b"12345678", 7) is entry
    cache.put("c", entry)
    assert cache.get("b", b"12345678", 7) is None
    assert cache.get("a", b"other...", 7) is None
    assert cache.get("a", b"12345678", 8) is None
    assert len(cache) == 2
    none = RankingCache(0)
    none.put("a", entry)
    assert len(none) == 0


def test_trending_survives_damage_and_absence(twin, caplog):
    twin.popular(0, "a", "a")
    twin.popular(2, "b")
    twin.store.progress["interactions", 1] = b"not a progress at all"
    twin.trending.refresh()
    assert twin.trending.current.items == ("a", "b")
    assert "partition" in caplog.text
    twin.broker.available = False
    twin.trending._ask_after = 0
    twin.trending.refresh()  # the partitions known so far are enough
    assert twin.trending.current.items == ("a", "b")


def test_a_large_round_and_requests_are_answered_side_by_side(twin):
    users = [f"u{n}" for n in range(300)]
    for user in users:
        twin.act(user, "item-1", "item-2")
    from services.recommender.queries import Answer, Query

    bundle = twin.ranker.ask_later([Query(user, 5) for user in users])
    responses = twin.calls(*(("GET", f"/v1/users/{user}/recommendations?k=5", {}) for user in users[:50]))
    outcomes = bundle.result(timeout=20)
    assert [outcome.user_id for outcome in outcomes if isinstance(outcome, Answer)] == users
    assert {response.status_code for response in responses} == {200}


def test_a_message_that_is_no_update_is_passed_over(twin):
    twin.broker.append("state-updates", b"0", b"garbage", partition=0)
    assert twin.emitter.round() == 0
    twin.act("u", "item-1")
    tell(twin, "u")
    assert twin.emitter.round() == 1
    assert twin.broker.committed["g", "state-updates", 0] == 2


def test_who_was_ranked_by_the_old_model_a_moment_before_a_swap_is_ranked_again(twin):
    for user in ("u", "v"):
        twin.act(user, "item-1")
        tell(twin, user)
    twin.emitter.round()
    assert twin.emitter.round() == 0
    twin.publish(7)
    assert twin.emitter.round() == 2
    assert {ranking["model_version"] for ranking in published(twin).values()} == {"2"}
    assert twin.emitter.round() == 0


def test_ranking_again_after_a_swap_outlives_a_failure(twin):
    twin.act("u", "item-1")
    tell(twin, "u")
    twin.emitter.round()
    twin.publish(7)
    twin.store.available = False
    with pytest.raises(Unavailable):
        twin.emitter.round()
    twin.store.available = True
    assert twin.emitter.round() == 1
    assert published(twin)["u"]["model_version"] == "2"
