"""Exact search: equal to sorting the whole catalogue, whatever shares a batch and whatever the precision."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.model.coarse import BF16, FP32
from shared.model.inference import InferenceModel
from shared.model.scorer import Scorer, largest, six_digits


def make_model(items=2000, width=16, seed=0, spread=1.0, twins=0):
    rng = torch.Generator().manual_seed(seed)
    embedding = torch.randn(items, width, generator=rng) * spread
    bias = torch.randn(items, generator=rng)
    if twins:  # equal scores: the lower index comes first
        embedding[-twins:] = embedding[:twins]
        bias[-twins:] = bias[:twins]
    gru = {
        "gru.weight_ih_l0": torch.randn(3 * width, width, generator=rng),
        "gru.weight_hh_l0": torch.randn(3 * width, width, generator=rng),
        "gru.bias_ih_l0": torch.randn(3 * width, generator=rng),
        "gru.bias_hh_l0": torch.randn(3 * width, generator=rng),
    }
    names = [f"i{n}" for n in range(items)]
    return InferenceModel("1", 7, names, {"item_embedding": embedding, "item_bias": bias, **gru})


def states(count, width=16, seed=1):
    return np.random.default_rng(seed).uniform(-1, 1, (count, width)).astype(np.float16)


def by_full_sort(model, hidden, k, excluded=()):
    products = model.embedding.numpy() * hidden.astype(np.float64)[None, :]
    scores = products.sum(axis=1) + model.bias.double().numpy()
    order = np.lexsort((np.arange(len(scores)), -scores))
    kept = [i for i in order if i not in set(excluded)][:k]
    return kept, six_digits(scores[kept])


@pytest.mark.parametrize("precision", [BF16, FP32])
@pytest.mark.parametrize("spread", [0.01, 1.0, 50.0])
def test_equals_a_full_sort(precision, spread):
    model = make_model(spread=spread, twins=300)
    hidden = states(5)
    ks = [1, 20, 100, 1000, 7]
    excluded = [[], [3, 4, 5], list(range(500)), [], [1999]]
    for row, top in enumerate(Scorer(model, precision).rank(hidden, ks, excluded)):
        indexes, scores = by_full_sort(model, hidden[row], ks[row], excluded[row])
        assert top.indexes.tolist() == indexes
        assert top.scores.tolist() == scores.tolist()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 300), st.sets(st.integers(0, 399), max_size=40)), min_size=1, max_size=70),
    st.lists(st.integers(1, 69), max_size=5),
    st.integers(0, 3),
)
def test_any_split_into_batches_gives_the_same_bits(requests, cuts, seed):
    scorer = Scorer(make_model(items=400, width=8, seed=seed), BF16)
    hidden = states(len(requests), 8, seed)
    ks, excluded = [k for k, _ in requests], [sorted(out) for _, out in requests]
    whole = scorer.rank(hidden, ks, excluded)
    edges = sorted({0, len(ks), *(c for c in cuts if c < len(ks))})
    parts = [top for a, b in itertools.pairwise(edges) for top in scorer.rank(hidden[a:b], ks[a:b], excluded[a:b])]
    for one, other in zip(whole, parts, strict=True):
        assert one.indexes.tobytes() == other.indexes.tobytes()
        assert one.scores.tobytes() == other.scores.tobytes()


def test_a_catalogue_smaller_than_k_is_given_whole():
    model = make_model(items=5)
    top = Scorer(model).rank(states(1), [1000], [[2]])[0]
    assert sorted(top.indexes.tolist()) == [0, 1, 3, 4]


def test_all_excluded_gives_nothing():
    top = Scorer(make_model(items=3)).rank(states(1), [5], [[0, 1, 2]])[0]
    assert top.indexes.size == 0
    assert top.scores.size == 0


def test_a_margin_too_narrow_for_the_precision_is_widened():
    # Embeddings so alike that bfloat16 cannot tell them apart: only the exact scores can.
    model = make_model(items=3000, spread=1e-5)
    model.bias.zero_()
    model.embedding.add_(1.0)
    scorer = Scorer(model, BF16)
    hidden = states(1)
    indexes, _ = by_full_sort(model, hidden[0], 20)
    assert scorer.rank(hidden, [20])[0].indexes.tolist() == indexes
    assert scorer.widened > 0


def test_several_tiles_are_one_catalogue(monkeypatch):
    monkeypatch.setattr("shared.model.coarse.TILE_ITEMS", 700)
    model = make_model()
    hidden = states(3)
    for row, top in enumerate(Scorer(model).rank(hidden, [50] * 3)):
        assert top.indexes.tolist() == by_full_sort(model, hidden[row], 50)[0]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 700), st.integers(1, 200), st.integers(0, 5))
def test_folding_finds_the_largest(width, size, seed):
    scores = torch.randint(-50, 50, (3, width), generator=torch.Generator().manual_seed(seed)).bfloat16()
    for row, found in zip(scores.float().numpy(), largest(scores, size), strict=True):
        assert len(set(found.indexes.tolist())) == len(found.indexes) >= min(size, width)
        assert (row[found.indexes] == found.values).all()
        assert (np.delete(row, found.indexes) <= found.floor).all()
        assert (found.values >= found.floor).all()


def test_six_digits_are_short_in_json():
    values = np.array([1.23456789, -0.000123456789, 0.0, 123456.789, 98765432.1])
    assert [repr(v) for v in six_digits(values).tolist()] == [
        "1.23457",
        "-0.000123457",
        "0.0",
        "123457.0",
        "98765400.0",
    ]
