"""A swap between real processes: new items before it, old states and old rankings after it."""

from __future__ import annotations

from shared.adapters.redis_store import RedisStateStore
from shared.core.state import decode_state
from tests.integration.recommender_process import Process
from tests.servers import until
from tests.unit.recommender_twins import ids

USERS = [f"user-{n}" for n in range(12)]


def test_new_items_are_ranked_before_the_next_model_and_all_is_refreshed_by_it(system: Process) -> None:
    system.publish(1)
    system.start()
    system.start("consumer", consumer_commit_ms=100, sweep_delay_s=0.5, fold_in_min=5)
    for n, user in enumerate(USERS):
        system.send(user, f"item-{n}", "brand-new", f"item-{n + 1}")
    until(lambda: "brand-new" in ids(ranking(system, "user-3")), 60, "the new item by the model")
    assert ranking(system, "user-3")["strategy"] == "gru"
    asked = {"items": ["item-3", "item-4"], "k": 300}
    posted = lambda: system.client.post("/v1/recommendations", json=asked).json()["items"]  # noqa: E731
    until(lambda: posted() == ranking(system, "user-3")["items"], 20, "the same by POST, once the counts are at rest")
    until(lambda: versions(system) == {"1"}, 60, "rankings on the topic")

    system.publish(2)  # nobody acts or asks from here on
    until(lambda: versions(system) == {"2"}, 60, "the rankings of the new model on the topic")
    store = RedisStateStore(system.redis)
    fingerprint = system.registry.manifest("2").fingerprint
    until(lambda: {decode_state(v).fingerprint for v in store.read(USERS)} == {fingerprint}, 30, "the sweep")
    store.close()
    assert "brand-new" not in ids(ranking(system, "user-3"))  # until five choose it under this model
    published = system.published()
    for user in USERS:
        assert published[user]["items"] == system.ranking(user)["items"]


def ranking(system: Process, user: str) -> dict[str, object]:
    return dict(system.get(f"/v1/users/{user}/recommendations?k=300").json())


def versions(system: Process) -> set[str | None] | None:
    """Of the models that made the users' rankings on the topic; None while some have none."""
    published = system.published()
    if not all(published.get(user) for user in USERS):
        return None
    return {published[user]["model_version"] for user in USERS}
