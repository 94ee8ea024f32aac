"""Interactions in, users forgotten, and the calls around them."""

import json
import re
import threading
import time
import uuid

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.consumer.advance import Placed, advance_states
from services.recommender.api_keys import KeyRing, keys_of_setting
from services.recommender.guard import HttpRules
from shared.core.ranking import Forget, decode_update
from shared.core.state import decode_state
from tests.unit.recommender_twins import Twin, ids


@pytest.fixture
def twin():
    twin = Twin()
    yield twin
    twin.stop()


def event(**changes):
    return {"user_id": "u", "item_id": "item-1", "event_type": "view", "ts": int(time.time() * 1000), **changes}


def test_an_interaction_is_in_kafka_when_202_comes(twin):
    response = twin.call("POST", "/v1/interactions", json=event(colour="blue"))
    assert (response.status_code, response.json()) == (202, {"accepted": 1})
    (record,) = twin.broker.records("interactions")
    assert record.key == b"u"
    assert json.loads(record.value)["colour"] == "blue"  # what we do not know may be of use to others


def test_a_list_keeps_its_order_for_each_user(twin):
    events = [event(user_id=f"u{n % 7}", item_id=f"item-{n}") for n in range(1000)]
    assert twin.call("POST", "/v1/interactions", json=events).json() == {"accepted": 1000}
    for user in range(7):
        mine = [json.loads(r.value)["item_id"] for r in twin.broker.records("interactions") if r.key == b"u%d" % user]
        assert mine == [f"item-{n}" for n in range(1000) if n % 7 == user]


def test_each_bad_event_is_named_and_none_is_accepted(twin):
    seconds = int(time.time())
    events = [event(), event(item_id=5), event(ts=seconds), 3, {"user_id": "u"}, event(user_id=""), event()]
    response = twin.call("POST", "/v1/interactions", json=events)
    assert response.status_code == 422
    named = [(d["index"], d["field"]) for d in response.json()["details"]]
    assert named == [(1, "item_id"), (2, "ts"), (3, ""), (4, "item_id"), (5, "user_id")]
    assert "seconds?" in response.json()["details"][1]["reason"]
    assert twin.broker.records("interactions") == []


@pytest.mark.parametrize("body", [b"", b"nonsense", b"[{]", b"\xff\xfe", b"null", b"[" * 5000, b'"text"'])
def test_what_is_no_json_is_422(twin, body):
    response = twin.call("POST", "/v1/interactions", content=body)
    assert response.status_code == 422
    assert response.json()["details"][0]["reason"]


def test_more_than_a_thousand_events_are_422(twin):
    response = twin.call("POST", "/v1/interactions", json=[event()] * 1001)
    assert response.status_code == 422
    assert "1001" in response.text


def test_an_empty_list_is_accepted(twin):
    assert twin.call("POST", "/v1/interactions", json=[]).json() == {"accepted": 0}


def test_kafka_away_is_503_and_over_when_it_is_back(twin):
    twin.broker.available = False
    response = twin.call("POST", "/v1/interactions", json=event())
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert "broker" in response.json()["error"]
    twin.broker.available = True
    assert twin.call("POST", "/v1/interactions", json=event()).status_code == 202


def test_forgetting_leaves_nothing(twin):
    twin.act("u", "item-1", "item-2")
    twin.ranking("u")
    twin.popular(0, "item-9")
    assert twin.call("DELETE", "/v1/users/u").status_code == 204
    state = decode_state(twin.store.users["u"])
    assert (state.hidden, state.recent_items(), state.events, state.event_ids) == (b"", [], 0, b"")
    assert ids(twin.ranking("u"))[0] == "item-9"
    assert len(twin.cache) == 0
    (forget,) = twin.broker.records("forgets")
    told = msgspec.json.decode(forget.value, type=Forget)
    assert (forget.key, told.user_id, set(told.end_offsets)) == (b"u", "u", {0, 1, 2, 3})
    (tombstone,) = twin.broker.records("recommendations")
    assert (tombstone.key, tombstone.value) == (b"u", None)
    updates = twin.broker.records("state-updates")
    assert [u.partition for u in updates] == [0, 1, 2, 3]
    assert all(decode_update(u.value).forgotten for u in updates)


def test_forgetting_knows_of_partitions_that_were_just_added(twin):
    assert twin.call("DELETE", "/v1/users/other").status_code == 204  # by now the ends of four are known
    twin.broker.add_partitions("interactions", 6)
    for _ in range(3):
        twin.broker.append("interactions", b"u", b"{}", partition=5)
    assert twin.call("DELETE", "/v1/users/u").status_code == 204
    told = msgspec.json.decode(twin.broker.records("forgets")[-1].value, type=Forget)
    assert told.end_offsets[5] == 3
    assert decode_state(twin.store.users["u"]).applied[5][1] == 3


def test_forgetting_a_stranger_and_a_damaged_state(twin):
    twin.store.users["damaged"] = b"nonsense of some length, more than the head of a state has" * 2
    for user in ("stranger", "damaged"):
        assert twin.call("DELETE", f"/v1/users/{user}").status_code == 204
        assert decode_state(twin.store.users[user]).events == 0


def test_forgetting_needs_redis_and_kafka(twin):
    twin.act("u", "item-1")
    twin.broker.available = False
    assert twin.call("DELETE", "/v1/users/u").status_code == 503
    twin.broker.available, twin.store.available = True, False
    assert twin.call("DELETE", "/v1/users/u").status_code == 503
    twin.store.available = True
    assert twin.call("DELETE", "/v1/users/u").status_code == 204


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 6), st.integers(0, 6), st.integers(0, 6), st.booleans())
def test_no_event_from_before_comes_back(shared_twin, applied, waiting, after, progress_known):
    """Events are applied up to some point, then the user is forgotten, then all are delivered from the start."""
    twin, user = shared_twin, uuid.uuid4().hex
    log = [event(user_id=user, item_id=f"item-{n}") for n in range(applied + waiting + after)]
    first = len(twin.broker.topics["interactions"].partitions[0])
    if progress_known:
        twin.popular(0)
    else:
        twin.store.progress.clear()
    incarnation = _incarnation(twin)

    def publish(part):
        for one in part:
            twin.broker.append("interactions", user.encode(), json.dumps(one).encode(), partition=0)

    def deliver(upto):
        value = twin.store.users.get(user)
        states = {user: decode_state(value)}
        events = [Placed(user, log[n]["item_id"], log[n]["ts"], None, 0, incarnation, first + n) for n in range(upto)]
        advance_states(states, events, twin.model, 32)
        from shared.core.ports import StateWrite
        from shared.core.state import encode_state, token_of

        twin.store.write([StateWrite(user, token_of(value), encode_state(states[user]))])
        return states[user]

    publish(log[: applied + waiting])
    deliver(applied)
    assert twin.call("DELETE", f"/v1/users/{user}").status_code == 204
    publish(log[applied + waiting :])
    state = deliver(len(log))
    assert state.recent_items() == [one["item_id"] for one in log[applied + waiting :]]


def _incarnation(twin):
    from shared.core.progress import Progress

    life, _ = twin.topics.describe("interactions")
    return Progress(life, 0, 0, 0, []).incarnation_id()


@pytest.fixture(scope="module")
def shared_twin():
    twin = Twin()
    yield twin
    twin.stop()


def test_a_body_over_the_limit_is_413():
    twin = Twin(http=HttpRules(max_body=2000))
    assert twin.call("POST", "/v1/interactions", content=b" " * 2001).status_code == 413

    async def chunks():
        for _ in range(30):
            yield b" " * 100

    response = twin.call("POST", "/v1/interactions", content=chunks())
    assert response.status_code == 413
    assert "HTTP_MAX_BODY_BYTES=2000" in response.json()["error"]
    twin.stop()


def test_api_keys_close_all_but_health_and_docs():
    twin = Twin(http=HttpRules(KeyRing(keys_of_setting("first,second"), needed=True)))
    for headers, status in [({}, 401), ({"X-API-Key": "third"}, 401), ({"X-API-Key": "second"}, 200)]:
        assert twin.call("GET", "/v1/users/u/recommendations", headers=headers).status_code == status
        assert twin.call("GET", "/v1/models", headers=headers).status_code == status
    for path in ("/healthz", "/readyz", "/metrics", "/docs", "/openapi.json"):
        assert twin.call("GET", path).status_code == 200
    twin.stop()


def test_models_tell_who_is_champion(twin):
    twin.registry.publish({k: v + 1 for k, v in _weights().items()}, _items(), make_current=False, metrics={"mrr": 0.3})
    view = twin.call("GET", "/v1/models").json()
    assert view["champion"] == "1"
    assert view["candidates"] == ["2"]
    assert view["loaded"]["version"] == "1"
    assert [v["role"] for v in view["versions"]] == ["champion", "candidate"]
    assert view["versions"][1]["metrics"] == {"mrr": 0.3}
    assert "lineage" in view["versions"][0]
    assert (view["versions"][0]["gate"], view["events"]) == (None, [])


def test_models_tell_what_the_gate_said_and_what_happened_last(twin):
    for n, gate in enumerate(({"decision": "promoted"}, {"decision": "kept back", "events": 9}, None), start=2):
        weights = {k: v + n for k, v in _weights().items()}
        twin.registry.publish(weights, _items(), make_current=False, metrics={"gate": gate} if gate else {})
    twin.registry.note("alarm", {"version": "1", "before": 0.5, "after": 0.4})
    twin.registry.note("rollback", {"version": "2", "back_to": "1"})
    view = twin.call("GET", "/v1/models").json()
    assert [v["role"] for v in view["versions"]] == ["champion", "rolled back", "rejected", "candidate"]
    assert view["candidates"] == ["4"]
    assert view["versions"][2]["gate"] == {"decision": "kept back", "events": 9}
    assert [event["kind"] for event in view["events"]] == ["rollback", "alarm"]
    assert view["events"][1]["details"] == {"version": "1", "before": 0.5, "after": 0.4}
    assert view["events"][0]["at"] > view["events"][1]["at"]
    for n in range(60):
        twin.registry.note("alarm", {"n": n})
    assert len(twin.call("GET", "/v1/models").json()["events"]) == 50


def _weights():
    from tests.unit.recommender_twins import weights

    return weights()


def _items():
    from tests.unit.recommender_twins import ITEMS

    return ITEMS


def test_readiness_tells_who_is_missing(twin):
    assert twin.call("GET", "/readyz").json() == {"ready": True, "redis": "ok", "kafka": "ok", "model": "1"}
    twin.store.available = False
    twin.readiness._known = None
    response = twin.call("GET", "/readyz")
    assert response.status_code == 503
    assert "switched off" in response.json()["redis"]
    assert response.json()["kafka"] == "ok"
    assert twin.call("GET", "/healthz").status_code == 200


def test_an_outage_of_kafka_takes_no_traffic_away_but_a_bad_start_gets_none(twin):
    def codes() -> tuple[int, int]:
        twin.readiness._known = None
        return twin.call("GET", "/readyz").status_code, twin.call("GET", "/readyz?for=traffic").status_code

    twin.readiness._was_ready = False
    twin.broker.available = False
    assert codes() == (503, 503)
    twin.broker.available = True
    assert codes() == (200, 200)
    twin.broker.available = False
    assert codes() == (503, 200)
    assert "switched off" in twin.call("GET", "/readyz?for=traffic").json()["kafka"]
    assert twin.call("GET", "/v1/users/u/recommendations").status_code == 200
    twin.store.available = False
    assert codes() == (503, 503)
    refused = twin.call("GET", "/readyz?for=trafic")
    assert refused.status_code == 422
    assert refused.json()["details"][0]["field"] == "for"


def test_who_is_forgotten_while_kafka_hangs_waits_for_a_while_and_nobody_else_does(twin):
    """Each holds a thread: of its own, or the probes would wait for all of them."""
    twin.act("u", "item-1")
    describe, back = twin.topics.describe, threading.Event()
    twin.topics.describe = lambda topic: describe(topic) if back.wait(20) else None
    twin.forgetter._timeout_s = 0.2
    for _ in range(20):
        refused = twin.call("DELETE", "/v1/users/u")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert "not forgotten within 0.2 s" in refused.json()["error"]
    assert twin.call("GET", "/metrics").status_code == 200
    assert twin.ranking("u")["strategy"] == "gru"
    back.set()
    twin.forgetter._timeout_s = 10.0
    assert twin.call("DELETE", "/v1/users/u").status_code == 204
    assert twin.ranking("u")["strategy"] == "trending"


def test_docs_need_nothing_from_elsewhere(twin):
    page = twin.call("GET", "/docs").text
    assert not re.search(r"(src|href)=.?(https?:)?//", page)
    assert twin.call("GET", "/").headers["content-type"].startswith("text/html")
    described = twin.call("GET", "/openapi.json").json()
    assert set(described["paths"]) >= {
        "/v1/users/{user_id}/recommendations", "/v1/recommendations", "/v1/interactions", "/v1/users/{user_id}",
        "/v1/models", "/v1/console", "/healthz", "/readyz", "/metrics",
    }  # fmt: skip
    assert set(described["components"]["schemas"]) >= {"Ranking", "Interaction", "SessionRequest", "ErrorBody"}


def test_unknown_paths_and_methods_answer_json(twin):
    assert twin.call("GET", "/nowhere").json()["error"].startswith("Not Found")
    assert twin.call("PUT", "/v1/interactions").status_code == 405


def test_metrics_count_requests_by_route(twin):
    twin.act("u", "item-1")
    twin.ranking("u")
    twin.call("GET", "/nowhere")
    text = twin.call("GET", "/metrics").text
    assert 'requests_total{route="/v1/users/{user_id}/recommendations",status="200"} 1.0' in text
    assert 'rankings_total{strategy="gru",way="http"} 1.0' in text
    assert 'route="other",status="404"' in text


def test_a_user_with_line_breaks_in_the_name_is_forgotten(twin):
    twin.act("a\nb\u2028", "item-1")
    assert twin.call("DELETE", "/v1/users/a%0Ab%E2%80%A8").status_code == 204
    assert decode_state(twin.store.users["a\nb\u2028"]).recent_items() == []


def test_deleting_a_ranking_forgets_nobody(twin):
    twin.act("a", "item-1")
    twin.act("a/recommendations", "item-1")
    before = dict(twin.store.users)
    answer = twin.call("DELETE", "/v1/users/a/recommendations")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET")
    assert twin.store.users == before
    assert twin.call("DELETE", "/v1/users/a%2Frecommendations").status_code == 204
    assert twin.store.users["a"] == before["a"]
    assert twin.store.users["a/recommendations"] != before["a/recommendations"]


def test_a_wrong_method_is_told_which_are_right(twin):
    assert twin.call("PUT", "/v1/models").headers["allow"] == "GET"
