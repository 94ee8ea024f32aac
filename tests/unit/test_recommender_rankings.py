"""Rankings over HTTP: whose they are, what they leave out, and that they follow the state."""

import random
import uuid

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.recommender_twins import ITEMS, Twin, ids


@pytest.fixture
def twin():
    twin = Twin()
    yield twin
    twin.stop()


@pytest.fixture(scope="module")
def shared_twin():
    twin = Twin()
    yield twin
    twin.stop()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([*ITEMS[:50], "unheard-of"]), min_size=1, max_size=30), st.integers(1, 320))
def test_a_user_and_a_session_with_the_same_items_get_the_same(shared_twin, items, k):
    user = uuid.uuid4().hex
    shared_twin.act(user, *items)
    by_user, by_session = shared_twin.ranking(user, f"?k={k}"), shared_twin.session(items, k=k)
    assert by_user["items"] == by_session["items"]
    assert by_user["strategy"] == by_session["strategy"]
    assert (by_user["user_id"], by_session["user_id"]) == (user, None)
    if by_user["strategy"] == "gru":
        assert len(by_user["items"]) == min(k, len(ITEMS))


def test_the_answer_has_the_contract_of_a_ranking(twin):
    twin.act("u", "item-1", ts=1_700_000_000_123)
    ranking = twin.ranking("u", "?k=3")
    assert list(ranking) == ["user_id", "items", "model_version", "strategy", "as_of", "recommendation_id"]
    assert ranking["as_of"] == 1_700_000_000_123
    assert ranking["model_version"] == "1"
    assert ranking["strategy"] == "gru"
    assert [list(item) for item in ranking["items"]] == [["item_id", "score"]] * 3
    assert ranking["recommendation_id"] != twin.ranking("u", "?k=3")["recommendation_id"]


def test_a_ranking_reflects_an_event_at_once(twin):
    twin.act("u", "item-1")
    before = twin.ranking("u")
    assert twin.ranking("u")["items"] == before["items"]
    twin.act("u", "item-2")
    assert twin.ranking("u")["items"] == twin.session(["item-1", "item-2"])["items"] != before["items"]


def test_who_is_unknown_gets_trending(twin):
    twin.popular(0, "new-item", "item-3", "item-3")
    twin.popular(3, "new-item", "new-item")
    ranking = twin.ranking("nobody")
    assert ranking["strategy"] == "trending"
    assert ranking["model_version"] is None
    assert ranking["items"][:2] == [{"item_id": "new-item", "score": 1.0}, {"item_id": "item-3", "score": 0.666667}]
    twin.act("stranger", "no-item-of-the-model")
    assert twin.ranking("stranger")["items"] == ranking["items"]
    assert twin.session([])["items"] == ranking["items"]
    assert ids(twin.ranking("nobody", "?exclude=new-item&k=1")) == ["item-3"]


def test_what_trends_is_followed_by_the_catalogue(twin):
    assert ids(twin.ranking("nobody", "?k=3")) == ["item-0", "item-1", "item-2"]
    twin.popular(0, "new-item", "item-1")
    ranking = twin.ranking("nobody", "?k=1000")
    assert ids(ranking) == ["item-1", "new-item", "item-0", *ITEMS[2:]]
    assert [item["score"] for item in ranking["items"]] == [1.0, 1.0, *[0.0] * 299]


def test_without_a_model_all_get_trending():
    twin = Twin(model=False)
    twin.popular(1, "a", "a", "b", "c")
    twin.act("u", "a")
    assert ids(twin.ranking("u", "?k=2")) == ["a", "b"]
    assert ids(twin.ranking("u", "?k=2&exclude_seen=true")) == ["b", "c"]
    assert twin.ranking("u")["strategy"] == "trending"
    twin.stop()


def test_a_state_of_another_model_is_rebuilt_from_its_items(twin):
    twin.act("u", "item-1", "item-2")
    first = twin.ranking("u")
    twin.publish(5)
    second = twin.ranking("u")
    assert second["model_version"] == "2"
    assert second["items"] == twin.session(["item-1", "item-2"])["items"] != first["items"]


def test_exclusions_leave_the_answer_full(twin):
    twin.act("u", *ITEMS[:32])
    whole = ids(twin.ranking("u", "?k=300"))
    assert len(whole) == 300
    unseen = [item for item in whole if item not in ITEMS[:32]]
    assert ids(twin.ranking("u", "?k=20&exclude_seen=true")) == unseen[:20]
    assert ids(twin.ranking("u", "?k=1000&exclude_seen=1")) == unseen
    left = [item for item in whole if item not in (whole[0], whole[2])]
    assert ids(twin.ranking("u", f"?k=70&exclude={whole[0]},who-knows&exclude={whole[2]}")) == left[:70]
    assert ids(twin.session(ITEMS[:32], k=20, exclude_seen=True)) == unseen[:20]


def test_the_current_item_is_left_out_where_the_log_knows_no_repeats(twin):
    twin.act("u", "item-1", "item-2", "no-item-of-the-model")
    before = twin.ranking("u", "?k=1000")["items"]
    assert {"item-1", "item-2"} <= {item["item_id"] for item in before}
    twin.publish(0, never_again=True)
    twin.act("u")
    now = twin.ranking("u", "?k=1000")["items"]
    assert now == [item for item in before if item["item_id"] != "item-2"]
    assert twin.session(["item-1", "item-2", "no-item-of-the-model"], k=1000)["items"] == now
    twin.act("u", "item-1")
    assert "item-1" not in ids(twin.ranking("u", "?k=1000"))
    assert "item-2" in ids(twin.ranking("u", "?k=1000"))


def test_exclude_seen_holds_on_the_next_request(twin):
    twin.act("u", "item-1")
    best = ids(twin.ranking("u", "?exclude_seen=true"))[0]
    twin.act("u", best)
    assert best not in ids(twin.ranking("u", "?k=300&exclude_seen=true"))


def test_concurrent_requests_get_what_they_get_alone(twin):
    users = [f"u{n}" for n in range(150)]
    rng = random.Random(3)
    for user in users:
        twin.act(user, *rng.choices(ITEMS, k=rng.randint(1, 6)))
    queries = [f"?k={rng.choice([1, 20, 64, 90, 300])}" for _ in users]
    together = twin.calls(
        *(("GET", f"/v1/users/{u}/recommendations{q}", {}) for u, q in zip(users, queries, strict=True))
    )
    twin.cache._entries.clear()
    for user, query, response in zip(users, queries, together, strict=True):
        assert response.json()["items"] == twin.ranking(user, query)["items"]


def test_a_long_session_is_taken_in_slices(twin):
    rng = random.Random(4)
    items = rng.choices(ITEMS, k=500)
    long, short = twin.calls(
        ("POST", "/v1/recommendations", {"json": {"items": items}}),
        ("POST", "/v1/recommendations", {"json": {"items": items[:1]}}),
    )
    hidden = twin.model.advance(twin.model.start(1), [twin.model.known(items)])
    top = twin.batches.serving.scorer.rank(hidden, [20])[0]
    assert [item["score"] for item in long.json()["items"]] == top.scores.tolist()
    assert len(short.json()["items"]) == 20


def test_a_model_that_comes_during_a_long_session_starts_it_again(twin):
    from services.recommender.queries import Answer, Query

    query = Query(None, 5, ITEMS[:100])
    assert twin.batches.rank([query]) == [None]
    twin.publish(9)
    outcomes = [None]
    while outcomes == [None]:
        outcomes = twin.batches.rank([query])
    (answer,) = outcomes
    assert isinstance(answer, Answer)
    assert [name.decode().strip('"') for name in answer.names] == ids(twin.session(ITEMS[:100], k=5))


def test_a_damaged_state_is_trending_and_told(twin, caplog):
    twin.popular(0, "item-3")
    twin.act("u", "item-1")
    value = twin.store.users["u"]
    twin.store.users["u"] = value[:-1] + bytes([value[-1] ^ 1])
    assert ids(twin.ranking("u"))[0] == "item-3"
    assert "cannot be read" in caplog.text
    assert twin.metrics.damaged._value.get() == 1


def test_redis_away_is_503_and_over_when_it_is_back(twin):
    twin.act("u", "item-1")
    twin.store.available = False
    response = twin.call("GET", "/v1/users/u/recommendations")
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert "switched off" in response.json()["error"]
    assert len(twin.session(["item-1"])["items"]) == 20  # needs no state
    twin.store.available = True
    assert len(twin.ranking("u")["items"]) == 20


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/users/u/recommendations?k=0", "k"),
        ("/v1/users/u/recommendations?k=1001", "k"),
        ("/v1/users/u/recommendations?k=ten", "k"),
        ("/v1/users/u/recommendations?k=", "k"),
        ("/v1/users/u/recommendations?k=-1", "k"),
        ("/v1/users/u/recommendations?exclude_seen=perhaps", "exclude_seen"),
        ("/v1/users/u/recommendations?exclude=" + "a," * 1001, "exclude"),
        ("/v1/users//recommendations", "user_id"),
        ("/v1/users/" + "%C3%A9" * 129 + "/recommendations", "user_id"),
        ("/v1/users/%FF/recommendations", "user_id"),
    ],
)
def test_a_bad_question_is_422_and_names_the_field(twin, path, field):
    response = twin.call("GET", path)
    assert response.status_code == 422
    assert response.json()["details"][0]["field"] == field
    assert field in response.json()["error"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"{", ""),
        (b'{"items": "a"}', "items"),
        (b'{"items": [1]}', "items[0]"),
        (b'{"items": [""]}', "items[0]"),
        (b'{"items": ["a", "' + b"x" * 257 + b'"]}', "items[1]"),
        (b'{"k": 3}', "items"),
        (b'{"items": [], "k": 0}', "k"),
        (b'{"items": [], "k": 2.5}', "k"),
        (b'{"items": [' + b'"a",' * 1000 + b'"a"]}', "items"),
        (b'{"items": ["\xff"]}', ""),
    ],
)
def test_a_bad_session_is_422_and_names_the_field(twin, body, field):
    response = twin.call("POST", "/v1/recommendations", content=body)
    assert response.status_code == 422, response.text
    assert response.json()["details"][0]["field"] == field


@pytest.mark.parametrize("user", ["a/b", "a%b", "é\n?#", "recommendations", "x/recommendations", "a b+c", "💧" * 64])
def test_any_text_is_a_user_id(twin, user):
    from urllib.parse import quote

    twin.act(user, "item-1")
    ranking = twin.ranking(quote(user, safe=""))
    assert ranking["user_id"] == user
    assert twin.call("GET", f"/v1/users/{quote(user, safe='')}").json()["user_id"] == user
    assert ranking["strategy"] == "gru"
