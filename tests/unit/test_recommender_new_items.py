"""Items that came after training: in every ranking, exactly, by GET and POST alike, and gone with their model."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from services.recommender.new_items import NO_NEW_ITEMS, NewItems
from services.recommender.serving import Serving
from shared.core.state import decode_state
from shared.model.fold_in import FoldIn
from shared.model.inference import InferenceModel
from tests.unit.recommender_twins import ITEMS, WIDTH, Twin, ids

NEW = [f"new-{n}" for n in range(6)]


@pytest.fixture
def twin() -> Iterator[Twin]:
    made = Twin()
    yield made
    made.stop()


def choose(twin: Twin, times: int = 4, seed: int = 0, partitions: int = 2) -> None:
    """Let users in random states have chosen the new items so often, in each of these partitions."""
    rng = np.random.default_rng(seed)
    assert twin.model is not None
    for partition in range(partitions):
        folding = FoldIn(100, 3600.0)
        folding.begin(twin.model.fingerprint)
        for item in NEW:
            hidden = rng.uniform(-1, 1, (times, WIDTH)).astype(np.float16)
            folding.add([item] * times, hidden, range(times))
        folding.observe(rng.uniform(-1, 1, (20, WIDTH)).astype(np.float16), range(0, 20_000, 1000), ["a"] * 20)
        twin.popular(partition, *NEW * 20, *ITEMS[:50], folding=folding)


def brute_force(serving: Serving, hidden: np.ndarray) -> list[tuple[str, float]]:
    """Every item and its score, best first."""
    model, new = serving.model, serving.new_items
    embedding = np.concatenate([model.embedding.double().numpy(), new.embedding])
    scores = embedding @ hidden.astype(np.float64) + np.concatenate([model.bias.double().numpy(), new.bias])
    names = [*model.items, *new.rows]
    return [(names[at], float(f"{scores[at]:.6g}")) for at in np.argsort(-scores)]


def state_of(twin: Twin, user: str) -> np.ndarray:
    return np.frombuffer(decode_state(twin.store.users[user]).hidden, np.float16)


@pytest.mark.parametrize("k", [1, 5, 20, 64, 300, 306, 1000])
def test_rankings_are_those_of_a_search_over_catalogue_and_new_items(twin, k):
    choose(twin)
    for n in range(5):
        twin.act(f"u{n}", *ITEMS[n : n + 3])
    for n in range(5):
        expected = brute_force(twin.ranker.serving, state_of(twin, f"u{n}"))
        got = twin.ranking(f"u{n}", f"?k={k}")
        assert got["strategy"] == "gru"
        assert [(i["item_id"], i["score"]) for i in got["items"]] == expected[:k]
        out = [item for item, _ in expected[: min(k, 200) : 2]]
        left = [item for item, _ in expected if item not in out][:k]
        assert ids(twin.ranking(f"u{n}", f"?k={k}&exclude={','.join(out)}")) == left
        posted = twin.session(ITEMS[n : n + 3], k=k)
        assert posted["items"] == got["items"]


def test_a_ranking_in_memory_sees_new_items_come_change_and_go(twin):
    twin.act("u", *ITEMS[:3])
    before = twin.ranking("u", "?k=64")["items"]
    answers = [before]
    for seed in (1, 2):
        choose(twin, seed=seed)
        expected = brute_force(twin.ranker.serving, state_of(twin, "u"))
        answers.append(twin.ranking("u", "?k=64")["items"])
        assert [(i["item_id"], i["score"]) for i in answers[-1]] == expected[:64]
    assert all(one != other for one, other in itertools.pairwise(answers))
    for partition in range(2):
        twin.popular(partition, *ITEMS[:50])
    assert twin.ranking("u", "?k=64")["items"] == before
    assert [twin.metrics.cache.labels(outcome)._value.get() for outcome in ("miss", "hit")] == [1, 3]


def test_a_new_item_that_was_just_opened_is_left_out_where_nothing_is_opened_twice(twin):
    """As one of the catalogue is. Its row fits just those who have opened it."""
    twin.publish(0, never_again=True)
    choose(twin)
    twin.act("u", "item-1", "new-0")
    for _ in range(2):  # the second from memory
        assert set(NEW) & set(ids(twin.ranking("u", "?k=400"))) == set(NEW[1:])
    assert set(NEW) & set(ids(twin.session(["item-1", "new-0"], k=400))) == set(NEW[1:])
    twin.act("u", "item-2")
    assert set(NEW) < set(ids(twin.ranking("u", "?k=400")))


def test_items_chosen_too_seldom_are_not_ranked_and_counts_of_partitions_add_up(twin):
    twin.act("u", *ITEMS[:3])
    choose(twin, times=2, partitions=1)
    assert not set(NEW) & set(ids(twin.ranking("u", "?k=306")))
    choose(twin, times=2, partitions=2)
    assert set(NEW) < set(ids(twin.ranking("u", "?k=306")))


def test_sums_of_another_model_are_not_ranked_by(twin):
    choose(twin)
    twin.act("u", *ITEMS[:3])
    assert set(NEW) < set(ids(twin.ranking("u", "?k=306")))
    twin.publish(7)
    assert not set(NEW) & set(ids(twin.ranking("u", "?k=306")))
    twin.trending.refresh()
    assert not set(NEW) & set(ids(twin.ranking("u", "?k=306")))
    choose(twin)
    assert set(NEW) < set(ids(twin.ranking("u", "?k=306")))


def test_a_model_that_came_later_than_the_sums_ranks_by_them_at_the_next_look(twin):
    choose(twin)
    assert twin.model is not None
    twin.act("u", *ITEMS[:3])
    twin.ranker.serve(Serving(twin.model))
    assert twin.ranker.serving.new_items is NO_NEW_ITEMS
    twin.trending.refresh()
    assert set(NEW) < set(ids(twin.ranking("u", "?k=306")))


def test_nothing_is_computed_where_nothing_changed(twin):
    choose(twin)
    held = twin.ranker.serving.new_items
    twin.trending.refresh()
    assert twin.ranker.serving.new_items is held


def test_items_that_the_model_knows_are_left_to_it(twin):
    folding = FoldIn(100, 3600.0)
    folding.begin(twin.model.fingerprint)
    folding.add([ITEMS[0]] * 5, np.ones((5, WIDTH), np.float16), range(5))
    twin.popular(0, ITEMS[0], folding=folding)
    assert twin.ranker.serving.new_items is NO_NEW_ITEMS


def test_equal_scores_put_the_catalogue_first():
    new = NewItems([b'"n"'], {"n": 0}, np.ones((1, 2)), np.zeros(1))
    indexes, scores = new.merge(np.array([4, 9], np.int32), np.array([2.0, 1.0]), np.ones(2, np.float16).tobytes(), 10)
    assert indexes.tolist() == [4, 10, 9]
    assert scores.tolist() == [2.0, 2.0, 1.0]


def test_a_user_of_whom_the_model_knows_nothing_is_offered_what_is_popular(twin):
    choose(twin)
    twin.act("u", *NEW[:2])
    got = twin.ranking("u")
    assert got["strategy"] == "trending"
    assert set(NEW) < set(ids(got))


def test_the_model_stays_as_it_was(twin):
    choose(twin)
    model = twin.ranker.serving.model
    assert isinstance(model, InferenceModel)
    assert len(model.items) == len(ITEMS) == len(model.embedding)
