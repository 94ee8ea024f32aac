"""What is popular now as a bias: nothing where nothing moved, the ratio where it did, and exact rankings by it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.consumer.offers import OfferBook
from services.consumer.partitions import Partition
from services.recommender.popular_now import PopularNow
from shared.core.progress import Progress, decode_progress, encode_progress, recent_counts
from shared.core.trending import Trending
from shared.model.coarse import BF16, FP32
from shared.model.fold_in import FoldIn
from shared.model.inference import InferenceModel
from shared.model.popularity import best_shape, bias_now, log_ratios, shares_of
from shared.model.rank import Ranked
from shared.model.refine import Correction
from shared.model.scorer import Scorer
from tests.unit.recommender_twins import ITEMS, WIDTH, Twin, ids, weights


def model_of(seed: int = 0) -> InferenceModel:
    small = {name: 0.3 * tensor for name, tensor in weights(seed).items()}
    return InferenceModel("m", 11, ITEMS, small)


def states(count: int, seed: int = 0) -> list[bytes]:
    rng = np.random.default_rng(seed)
    return [rng.uniform(-1, 1, WIDTH).astype(np.float16).tobytes() for _ in range(count)]


def counted(items: list[str], half_life_s: float = 1200.0) -> Trending:
    counts = Trending(half_life_s, 1000)
    for item in items:
        counts.add(item, 1_000_000)
    return counts


def test_ratios_near_one_are_left_alone_and_far_ones_are_found():
    rng = np.random.default_rng(1)
    expected = rng.gamma(1.0, 20.0, 2000)
    steady = rng.poisson(expected).astype(float)
    assert best_shape(steady, expected) == math.inf
    assert not log_ratios(steady, expected).any()
    truth = rng.gamma(0.5, 2.0, 2000)
    moved = rng.poisson(expected * truth).astype(float)
    assert best_shape(moved, expected) == 0.5
    seen = moved > 30
    assert log_ratios(moved, expected)[seen] == pytest.approx(np.log(truth[seen]), abs=0.5)


def test_the_bias_brings_what_is_chosen_now_to_its_share():
    model, typical = model_of(), states(64)
    rng = np.random.default_rng(2)
    favourites = ITEMS[200:220]
    bias = bias_now(model, typical, counted([favourites[n] for n in rng.integers(0, 20, 5000)]), 1000)
    assert bias is not None
    moved = {name: tensor * 0.3 for name, tensor in weights().items()}
    moved["item_bias"] = moved["item_bias"] + torch.from_numpy(bias)
    hidden = np.frombuffer(b"".join(typical), np.float16).reshape(-1, WIDTH)
    after = shares_of(InferenceModel("m", 11, ITEMS, moved), hidden)
    assert shares_of(model, hidden)[200:220].sum() < 0.1
    assert after[200:220].sum() > 0.9


def test_nothing_to_go_by_is_no_bias():
    model = model_of()
    assert bias_now(model, [], counted(["item-1"] * 500), 1000) is None
    assert bias_now(model, states(8), Trending(1200.0, 1000), 1000) is None
    probabilities = shares_of(model, np.frombuffer(b"".join(states(64)), np.float16).reshape(-1, WIDTH))
    drawn = np.random.default_rng(3).choice(len(ITEMS), 300, p=probabilities / probabilities.sum())
    assert bias_now(model, states(64), counted([ITEMS[n] for n in drawn]), 1000) is None


def test_items_that_the_counts_had_no_room_for_are_not_taken_for_unpopular():
    model, typical = model_of(), states(64)
    recent = Trending(1200.0, 3)
    for item, times in (("item-1", 400), ("item-2", 300), ("item-3", 290)):
        for _ in range(times):
            recent.add(item, 1_000_000)
    full, cut = bias_now(model, typical, recent, 1000), bias_now(model, typical, recent, 3)
    assert full is not None
    assert cut is not None
    assert full[10:].max() < -0.5
    assert np.abs(cut[10:]).max() < 0.01


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(ITEMS[:5]), st.integers(0, 7200_000)), min_size=1, max_size=40), st.data())
def test_counts_are_the_same_however_split_and_stored(events, data):
    whole, parts = Trending(1200.0, 1000), [Progress("life", 0, 0, 0, []) for _ in range(2)]
    held = [Trending(1200.0, 1000) for _ in parts]
    for item, ts in events:
        whole.add(item, 10_000 + ts)
        held[data.draw(st.integers(0, 1))].add(item, 10_000 + ts)
    for part, counts in zip(parts, held, strict=True):
        part.recent_landmark, part.recent = counts.snapshot()
        part.recent_total, part.recent_ts = counts.total, counts.newest
    stored = [decode_progress(encode_progress(part, b"\0" * 8)) for part in parts]
    got, expected = recent_counts(stored, 1200.0, 1000).counts(), whole.counts()
    assert got[0] == pytest.approx(expected[0])
    assert got[1] == pytest.approx(expected[1])
    newest = max(10_000 + ts for _, ts in events)
    by_hand = sum(2.0 ** ((10_000 + ts - newest) / 1200_000) for _, ts in events)
    assert expected[1] == pytest.approx(by_hand)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["fp32", "bf16"]))
def test_a_ranking_by_a_bias_is_that_of_a_search_over_everything(seed, precision):
    model = model_of(1)
    rng = np.random.default_rng(seed)
    extra = rng.normal(0, 3, len(ITEMS)).astype(np.float32)
    scorer = Scorer(model, BF16 if precision == "bf16" else FP32)
    plain = scorer.rank(rng.uniform(-1, 1, (1, WIDTH)).astype(np.float16), [5])[0]
    hidden = rng.uniform(-1, 1, (3, WIDTH)).astype(np.float16)
    found = scorer.corrected(Correction.of_bias(extra), 4).rank(hidden, [20, 5, 300])
    bias = (model.bias + torch.from_numpy(extra)).double().numpy()
    exact = hidden.astype(np.float64) @ model.embedding.double().numpy().T + bias
    for row, top in enumerate(found):
        assert top.indexes.tolist() == np.argsort(-exact[row], kind="stable")[: len(top.indexes)].tolist()
    ranked = Ranked(model, None, Correction.of_bias(extra))
    assert ranked.ranks(hidden[:1], [int(found[0].indexes[7])], [[]]) == [8]
    assert len(plain.indexes) == 5
    assert scorer.number == 0


def test_rankings_follow_a_new_bias_and_stay_in_memory_under_it():
    twin = Twin()
    try:
        twin.act("u", *ITEMS[:3])
        before = ids(twin.ranking("u"))
        serving = twin.ranker.serving
        assert serving is not None
        assert twin.model is not None
        clock = [100.0]
        now = PopularNow(lambda: twin.ranker.serving, 1200.0, 1000, 10.0, twin.metrics, clock=lambda: clock[0])

        def told(offset: int, items: list[str]) -> list[Progress]:
            counts = counted(items)
            landmark, kept = counts.snapshot()
            return [
                Progress("life", 0, offset, 0, [], 0.0, serving.model.fingerprint, [], states(40), landmark, kept,
                         counts.total, counts.newest)
            ]  # fmt: skip

        now.update(told(1, [*before[10:12]] * 4000))
        assert serving.scorer.number > 0
        after = ids(twin.ranking("u"))
        assert set(after[:2]) == set(before[10:12])
        assert ids(twin.session(ITEMS[:3])) == after
        number = serving.scorer.number
        misses = twin.metrics.cache.labels("miss")._value.get()
        now.update(told(2, [*before[15:17]] * 4000))  # too soon
        assert serving.scorer.number == number
        assert ids(twin.ranking("u")) == after
        assert twin.metrics.cache.labels("miss")._value.get() == misses
        clock[0] += 10
        now.update(told(2, [*before[15:17]] * 4000))
        assert serving.scorer.number > number
        assert set(ids(twin.ranking("u"))[:2]) == set(before[15:17])
        off = PopularNow(lambda: twin.ranker.serving, 0.0, 1000, 10.0, twin.metrics, clock=lambda: clock[0])
        scorer = serving.scorer
        off.update(told(3, [*before[10:12]] * 4000))
        assert serving.scorer is scorer
    finally:
        twin.stop()


def test_the_consumer_scores_by_the_same_bias():
    model = model_of()
    folding = FoldIn(10, 3600.0)
    folding.begin(model.fingerprint)
    held = [np.frombuffer(state, np.float16) for state in states(30)]
    folding.observe(held, range(0, 30_000, 1000), ["a"] * 30)
    recent = counted(ITEMS[50:55] * 500)
    progress, choosers = Progress("life", 0, 0, 0, []), FoldIn(10, 3600.0)
    part = Partition(progress, b"", Trending(3600.0, 10), 0, 0, 1, folding, 0, choosers, recent)
    book = OfferBook(3600.0, 5, 10, 1200.0, 1000, 10.0, clock=lambda: 0.0)
    book.look({0: part}, cold=False)
    assert book.current.corrected is None
    book.make_correction(model)
    corrected = book.current.corrected
    assert corrected is not None
    assert corrected.correction is not None
    assert corrected.fingerprint == model.fingerprint
    expected = bias_now(model, states(30), recent, 1000)
    assert expected is not None
    assert corrected.correction.extra == pytest.approx(expected)


def test_counts_of_a_longer_half_life_than_now_can_be_read() -> None:
    """As stored before the setting was changed: their weights lie far from the landmark."""
    counted = Trending(1.0, 10)
    counted.merge(0, [("a", 2.0)], 2.0, 86_400_000)
    assert counted.counts()[0].keys() == {"a"}
