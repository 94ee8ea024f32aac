import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from shared.model.loss import softmax_loss
from shared.model.optimizer import RowAdam
from shared.model.sample import Candidates, NegativeSampler, all_items


def test_full_softmax_on_literal_numbers() -> None:
    hidden = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    embedding = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    bias = torch.tensor([0.0, 0.0, 1.0])
    # scores: (1, 0, 1) with target 0, and (0, 2, 1) with target 1
    first = math.log(math.e + 1 + math.e) - 1
    second = math.log(1 + math.e**2 + math.e) - 2
    found = softmax_loss(hidden, embedding, bias, all_items(np.array([0, 1]), 3))
    assert found.item() == pytest.approx((first + second) / 2, abs=1e-6)


def test_sampled_with_every_item_once_is_the_full_softmax() -> None:
    torch.manual_seed(0)
    hidden, embedding, bias = torch.randn(5, 4), torch.randn(7, 4), torch.randn(7)
    targets = np.array([0, 3, 6, 3, 2])
    sampler = NegativeSampler(np.ones(7), 0.0)
    sampler.draw = lambda count, rng: np.arange(7)  # type: ignore[method-assign]  # each item drawn exactly once
    among = sampler.candidates(targets, 7, np.random.default_rng(0))
    sampled = softmax_loss(hidden, embedding[among.items], bias[among.items], among)
    full = functional.cross_entropy(hidden @ embedding.T + bias, torch.from_numpy(targets))
    assert sampled.item() == pytest.approx(full.item(), abs=1e-5)


def test_a_draw_that_hits_the_target_is_no_rival_of_it() -> None:
    """Target 0 was drawn, and item 1 was not: so for target 0 only itself is left, and the loss is 0."""
    among = Candidates(np.array([0]), np.array([0]), np.array([5.0], np.float32))
    assert softmax_loss(torch.ones(1, 2), torch.ones(1, 2), torch.zeros(1), among).item() == 0.0


def test_a_barred_item_is_no_negative_of_that_pair_but_may_be_its_target() -> None:
    hidden, embedding, bias = torch.ones(2, 1), torch.tensor([[1.0], [2.0], [3.0]]), torch.zeros(3)
    among = Candidates(np.arange(3), np.array([0, 2]), np.zeros(3, np.float32), np.array([1, 2]))
    first = math.log(math.e + math.e**3) - 1
    second = math.log(math.e + math.e**2 + math.e**3) - 3
    assert softmax_loss(hidden, embedding, bias, among).item() == pytest.approx((first + second) / 2, abs=1e-5)


def test_a_target_that_was_not_drawn_is_a_candidate_of_its_own_pair_only() -> None:
    sampler = NegativeSampler(np.array([1, 1, 1]), 1.0)
    sampler.draw = lambda count, rng: np.array([2, 2])  # type: ignore[method-assign]
    among = sampler.candidates(np.array([0, 1]), 2, np.random.default_rng(0))
    assert among.items.tolist() == [0, 1, 2]
    assert among.targets.tolist() == [0, 1]
    # item 2: drawn twice in two draws of probability 1/3 each
    assert among.correction.tolist() == pytest.approx([-math.inf, -math.inf, math.log(3)])


def test_sampled_loss_is_unbiased_in_the_partition_sum() -> None:
    """Over many draws the corrected sum of the negatives' exponentials meets that of the whole catalogue."""
    rng = np.random.default_rng(3)
    counts = rng.integers(1, 50, 40)
    scores = rng.normal(size=40)
    sampler = NegativeSampler(counts, 0.75)
    sums = []
    for _ in range(4000):
        among = sampler.candidates(np.zeros(0, np.int64), 16, rng)
        sums.append(np.exp(scores[among.items] + among.correction).sum())
    assert np.mean(sums) == pytest.approx(np.exp(scores).sum(), rel=0.02)


@given(power=st.floats(0, 1), counts=st.lists(st.integers(0, 1000), min_size=1, max_size=50))
def test_draws_are_in_range_and_probabilities_sum_to_one(power: float, counts: list[int]) -> None:
    sampler = NegativeSampler(np.array(counts), power)
    drawn = sampler.draw(100, np.random.default_rng(0))
    assert drawn.min() >= 0
    assert drawn.max() < len(counts)
    assert sampler.probability.sum() == pytest.approx(1)
    assert (sampler.probability > 0).all()


def test_draws_follow_popularity_to_the_power() -> None:
    drawn = NegativeSampler(np.array([16, 1]), 0.5).draw(20_000, np.random.default_rng(0))
    assert (drawn == 0).mean() == pytest.approx(0.8, abs=0.01)


def test_row_adam_equals_dense_adam_where_every_row_is_touched() -> None:
    torch.manual_seed(0)
    table = torch.randn(4, 3)
    dense = table.clone().requires_grad_()
    adam, rows = torch.optim.Adam([dense], lr=0.01), RowAdam(table)
    for _ in range(5):
        gradient = torch.randn(4, 3)
        dense.grad = gradient.clone()
        adam.step()
        rows.step(torch.arange(4), gradient, 0.01)
    torch.testing.assert_close(table, dense.detach(), rtol=1e-5, atol=1e-6)


def test_row_adam_leaves_other_rows_alone_and_counts_updates_by_row() -> None:
    table = torch.zeros(3, 2)
    rows = RowAdam(table)
    for _ in range(50):
        rows.step(torch.tensor([0]), torch.ones(1, 2), 0.1)
    rows.step(torch.tensor([2]), torch.ones(1, 2), 0.1)
    assert table[1].tolist() == [0, 0]
    # A row's first update is of full size, however late it comes.
    assert table[2].tolist() == pytest.approx([-0.1, -0.1], abs=1e-6)
    assert rows.updates.tolist() == [50, 0, 1]
