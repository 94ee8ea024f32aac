import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared.model import evaluate as module
from shared.model.evaluate import evaluate, metrics_of, popularity, ranks
from shared.model.network import NO_REPEATS, Network
from tests.unit.test_model_dataset import sessions_of


def test_ranks_count_ties_against_the_target() -> None:
    scores = torch.tensor([[3.0, 2.0, 1.0], [1.0, 1.0, 1.0], [0.0, 5.0, 5.0]])
    assert ranks(scores, torch.tensor([1, 0, 1])).tolist() == [2, 3, 2]


def test_a_score_that_is_no_number_ranks_last() -> None:
    assert ranks(torch.tensor([[math.nan, 1.0, 2.0]]), torch.tensor([0])).tolist() == [3]


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=20), st.data())
def test_rank_is_the_worst_place_among_equals(values: list[int], data: st.DataObject) -> None:
    target = data.draw(st.integers(0, len(values) - 1))
    found = ranks(torch.tensor([values], dtype=torch.float32), torch.tensor([target])).item()
    assert found == sum(value >= values[target] for value in values)


def test_metrics_at_20() -> None:
    found = metrics_of(torch.tensor([1, 20, 21, 4]))
    assert found.recall20 == 0.75
    assert found.mrr20 == pytest.approx((1 + 0.05 + 0.25) / 4)
    assert found.events == 4


def test_popularity_ranks_by_count_with_ties_against() -> None:
    train = sessions_of([0, 0, 0, 1, 2])
    test = sessions_of([2, 0], [0, 1, 0])
    # ranks: item 0 -> 1, items 1 and 2 tie -> 3
    assert popularity(train, test, 3).mrr20 == pytest.approx((1 + 1 / 3 + 1) / 3)


def test_large_catalogues_have_the_same_baseline() -> None:
    train = sessions_of(list(np.random.default_rng(0).integers(0, 30, 200)))
    small, large = popularity(train, train, 30), popularity(train, train, 5000)
    assert small.mrr20 == pytest.approx(large.mrr20)


@pytest.mark.parametrize("repeats", [True, False])
@pytest.mark.parametrize("score_bytes", [1, 400, 64 << 20])
def test_evaluate_equals_event_by_event_in_double_precision(
    score_bytes: int, repeats: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SCORE_BYTES", score_bytes)
    weights = Network(30, 8, torch.Generator().manual_seed(1)).weights()
    weights["item_bias"] = torch.linspace(-1, 1, 30)
    if not repeats:  # the current item is not ranked at all
        weights[NO_REPEATS] = torch.ones(1)
    rng = np.random.default_rng(0)
    sessions = [list(rng.integers(0, 30, n)) for n in (1, 2, 5, 90, 3)]
    gru = Network.from_weights(weights).gru.double()
    embedding, bias = weights["item_embedding"].double(), weights["item_bias"].double()
    expected = []
    for session in (s for s in sessions if len(s) > 1):
        states, _ = gru(embedding[torch.tensor(session[:-1], dtype=torch.int64)][:, None])
        for state, current, target in zip(states[:, 0], session[:-1], session[1:], strict=True):
            scores = embedding @ state + bias
            if not repeats:
                scores[current] = -torch.inf
            expected.append(int((scores >= scores[target]).sum()))
    found = evaluate(weights, sessions_of(*sessions))
    reference = metrics_of(torch.tensor(expected))
    assert found.events == 96
    assert (found.recall20, found.mrr20) == pytest.approx((reference.recall20, reference.mrr20), abs=1e-9)


def test_evaluate_tells_progress_to_the_end() -> None:
    told: list[tuple[int, int]] = []
    weights = Network(5, 4, torch.Generator().manual_seed(1)).weights()
    evaluate(weights, sessions_of([0, 1, 2], [3, 4]), lambda done, total: told.append((done, total)))
    assert told[-1] == (3, 3)


def test_nothing_to_predict() -> None:
    weights = Network(5, 4, torch.Generator().manual_seed(1)).weights()
    assert evaluate(weights, sessions_of([1])).events == 0
    assert popularity(sessions_of([1, 1]), sessions_of([1]), 5).events == 0
