"""Rows of known items follow those who choose them now, where the latest choices say so; rankings by them are exact."""

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
from shared.adapters.memory import MemoryBroker, MemoryStateStore
from shared.core.progress import Progress, decode_progress, encode_progress
from shared.core.trending import Trending
from shared.model.coarse import BF16, FP32
from shared.model.fold_in import Bases, Basis, FoldIn, Rows
from shared.model.inference import InferenceModel
from shared.model.rank import Ranked
from shared.model.refine import LEAST_CHOICES, WORTH, Choices, Correction, Seen, Table, correction_now, refined
from shared.model.scorer import Scorer
from tests.unit.recommender_twins import ITEMS, WIDTH, Twin, weights
from tests.unit.test_engagement import new_broker
from tests.unit.test_replay_property import NOW_MS, Member, value

ROWS_D, ROWS_N = 8, 30


def world(seed: int, trained: str, events: int = 20_000) -> tuple[Basis, Table, Choices, np.ndarray]:
    """Users whose states are normally distributed choose by a softmax over true rows (N, D), which are returned too;
    the model was trained on these ("true"), or on other ones ("stale"). All rows have something in common."""
    rng = np.random.default_rng(seed)
    true = rng.normal(0, 1.0, (ROWS_N, ROWS_D)) + np.linspace(-1, 1, ROWS_D)
    held = true if trained == "true" else rng.permutation(true)
    states = rng.normal(0, 1.0, (events, ROWS_D))
    noise = rng.gumbel(size=(len(states), ROWS_N))
    chosen = (states @ true.T - (true**2).sum(1) / 2 + noise).argmax(1)
    common = np.bincount(chosen, minlength=ROWS_N)[chosen] > 1
    states, chosen = states[common], chosen[common]
    sums, counts = np.zeros((ROWS_N, ROWS_D)), np.bincount(chosen, minlength=ROWS_N).astype(float)
    np.add.at(sums, chosen, states)
    typical = states[-256:]
    bias = -(held**2).sum(1) / 2
    basis = Basis(typical, np.log(np.exp(typical @ held.T + bias).sum(1)))
    counts[counts == 0] = 2.0  # of items that nobody chose, somewhere in the middle
    return basis, Table(held, bias, sums, counts), Choices(typical, chosen[-256:]), true


def test_rows_that_hold_stay():
    for events in (128, 256, 512, 1024, 20_000):
        for seed in range(10):
            basis, table, choices, _ = world(seed, "true", events)
            assert refined(basis, table, choices) is None


def test_rows_of_yesterday_go_where_those_who_choose_the_items_are():
    for seed in range(5):
        basis, table, choices, true = world(seed, "stale")
        rows = refined(basis, table, choices)
        assert rows is not None
        assert rows.worth == WORTH[0]

        def likeness(held: np.ndarray, truth: np.ndarray = true) -> float:
            centred, wanted = held - held.mean(0), truth - truth.mean(0)
            return float((centred * wanted).sum() / np.sqrt((centred**2).sum() * (wanted**2).sum()))

        assert likeness(rows.embedding) > 0.9
        assert likeness(table.embedding) < 0.5
        assert basis.shares(rows.embedding, rows.bias) == pytest.approx(basis.shares(table.embedding, table.bias))
        kept, common = rows.embedding.mean(0), true.mean(0)
        assert kept @ common > 0.9 * np.linalg.norm(kept) * np.linalg.norm(common)
        few = Choices(choices.states[: LEAST_CHOICES - 1], choices.rows[: LEAST_CHOICES - 1])
        assert refined(basis, table, few) is None


def test_an_item_that_is_offered_to_nobody_stays_a_number():
    basis, table, choices, _ = world(0, "stale")
    table.bias[3] = -2000.0
    rows = refined(basis, table, choices)
    assert rows is not None
    assert np.isfinite(rows.bias).all()
    assert rows.bias[3] < rows.bias.mean() - 20


def test_a_choice_does_not_speak_for_its_own_row():
    """Each item has two choosers, anywhere: in the sums with their own states, their rows would seem perfect."""
    rng = np.random.default_rng(3)
    states = rng.normal(0, 1.0, (2 * 100, ROWS_D))
    rows = np.repeat(np.arange(100), 2)
    sums = np.zeros((100, ROWS_D))
    np.add.at(sums, rows, states)
    basis = Basis(states, np.full(len(states), math.log(100)))
    zeros = np.zeros((100, ROWS_D))
    table = Table(zeros, np.zeros(100), sums, np.full(100, 2.0))
    assert refined(basis, table, Choices(states, rows)) is None


def model_of(seed: int = 0) -> InferenceModel:
    return InferenceModel("m", 11, ITEMS, {name: 0.3 * tensor for name, tensor in weights(seed).items()})


def random_correction(rng: np.random.Generator, rows: int) -> Correction:
    extra = rng.normal(0, 2, len(ITEMS)).astype(np.float32)
    indexes = np.sort(rng.choice(len(ITEMS), rows, replace=False)).astype(np.int64)
    return Correction(extra, indexes, rng.normal(0, 2, (rows, WIDTH)).astype(np.float32), 10.0)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([FP32, BF16]), st.integers(0, len(ITEMS)))
def test_a_corrected_ranking_is_that_of_a_search_over_the_corrected_rows(seed, precision, rows):
    model, rng = model_of(1), np.random.default_rng(seed)
    correction = random_correction(rng, rows)
    hidden = rng.uniform(-1, 1, (3, WIDTH)).astype(np.float16)
    scorer = Scorer(model, precision)
    plain = scorer.rank(hidden, [10] * 3)
    embedding = model.embedding.double().numpy().copy()
    embedding[correction.indexes] = correction.embedding
    bias = (model.bias + torch.from_numpy(correction.extra)).double().numpy()
    exact = hidden.astype(np.float64) @ embedding.T + bias
    out = [int(exact[1].argmax())]
    corrected = scorer.corrected(correction, 4)
    found = corrected.rank(hidden, [20, 5, 300], [[], out, []])
    exact[1, out] = -np.inf
    for row, top in enumerate(found):
        assert top.indexes.tolist() == np.argsort(-exact[row], kind="stable")[: len(top.indexes)].tolist()
    assert corrected.number == 4
    # The consumer ranks by the same, new items and what is left out included.
    new = Rows(("x", "y"), rng.normal(0, 2, (2, WIDTH)).astype(np.float32), np.zeros(2, np.float32))
    every = np.concatenate([exact, hidden.astype(np.float64) @ new.embedding.T.astype(np.float64)], axis=1)
    chosen = [int(found[0].indexes[7]), int(found[1].indexes[3]), len(ITEMS) + 1]
    ranks = Ranked(model, new, correction).ranks(hidden, chosen, [[], out, []])
    assert ranks == [int((every[row] >= every[row, item]).sum()) for row, item in enumerate(chosen)]
    # Nothing of it stays behind.
    for again, before in zip(corrected.corrected(None, 0).rank(hidden, [10] * 3), plain, strict=True):
        assert again.indexes.tolist() == before.indexes.tolist()
        assert again.scores.tolist() == before.scores.tolist()


def told(model: InferenceModel, partitions: int = 1) -> list[Progress]:
    """What consumers store where two items have changed their audiences: those whom the model would offer 3 choose 7,
    and the other way round."""
    rng = np.random.default_rng(5)
    states = rng.uniform(-1, 1, (4000 * partitions, WIDTH)).astype(np.float16)
    scores = states.astype(np.float32) @ model.embedding.numpy()[[3, 7]].T
    chosen = np.array(ITEMS)[np.where(scores[:, 0] > scores[:, 1], 7, 3)]
    found = []
    for part in range(partitions):
        mine = slice(part * 4000, (part + 1) * 4000)
        recent, choosers, folding = Trending(1200.0, 1000), FoldIn(10, 3600.0), FoldIn(10, 3600.0)
        for held in (choosers, folding):
            held.begin(model.fingerprint)
        ts = range(0, 4000 * 100, 100)
        choosers.add(chosen[mine].tolist(), states[mine], ts)
        folding.observe(states[mine], ts, chosen[mine].tolist())
        for item, at in zip(chosen[mine].tolist(), ts, strict=True):
            recent.add(item, NOW_MS + at)
        landmark, kept = recent.snapshot()
        progress = Progress(
            "life", 0, 4000, 0, [], 0.0, model.fingerprint, [], [state for state, _ in folding.typical],
            landmark, kept, recent.total, recent.newest, [item for _, item in folding.typical], choosers.snapshot(),
        )  # fmt: skip
        found.append(decode_progress(encode_progress(progress, b"\0" * 8)))
    return found


def seen_in(progresses: list[Progress]) -> Seen:
    recent = Trending(1200.0, 1000)
    for p in progresses:
        recent.merge(p.recent_landmark, p.recent, p.recent_total, p.recent_ts)
    choices = [choice for p in progresses for choice in p.choices()]
    return Seen(choices, [one for p in progresses for one in p.choosers], recent)


def test_items_that_changed_their_audiences_change_their_rows():
    model = model_of()
    correction = correction_now(model, Bases(model), seen_in(told(model, 2)), 1000, 10)
    assert correction is not None
    assert correction.indexes.tolist() == [3, 7]
    assert correction.worth == WORTH[0]
    # Each lies now on the other's side of the line between them.
    between = (model.embedding[3] - model.embedding[7]).numpy()
    assert (correction.embedding[0] - correction.embedding[1]) @ between < 0
    only_bias = correction_now(model, Bases(model), seen_in(told(model, 2)), 1000, 0)
    assert only_bias is not None
    assert not len(only_bias.indexes)
    most = correction_now(model, Bases(model), seen_in(told(model, 2)), 1000, 1)  # one row has none to be compared with
    assert most is not None
    assert not len(most.indexes)


def test_values_stored_before_are_read_and_change_no_row():
    model = model_of()
    (progress,) = told(model)
    progress.typical_items, progress.choosers = [], []
    assert progress.choices() == [(state, "") for state in progress.typical]
    correction = correction_now(model, Bases(model), seen_in([progress]), 1000, 10)
    assert correction is not None
    assert not len(correction.indexes)


def test_rankings_follow_and_the_consumer_scores_by_the_same_rows():
    twin = Twin()
    try:
        twin.act("u", *ITEMS[:3])
        serving = twin.ranker.serving
        assert serving is not None
        model = serving.model
        progresses = told(model)
        before = twin.ranking("u")["items"]
        now = PopularNow(lambda: twin.ranker.serving, 1200.0, 1000, 10.0, twin.metrics, 10)
        now.update(progresses)
        scorer, alone = serving.scorer, PopularNow(lambda: twin.ranker.serving, 1200.0, 1000, 10.0, twin.metrics)
        refined_ranking = twin.ranking("u")["items"]
        assert refined_ranking != before
        alone.update(progresses)  # by what is popular alone
        assert serving.scorer is not scorer
        assert twin.ranking("u")["items"] != refined_ranking
        serving.scorer = scorer
        now = PopularNow(lambda: twin.ranker.serving, 1200.0, 1000, 10.0, twin.metrics, 10)
        now.update(progresses)
        assert twin.metrics.refined_items._value.get() == 2
        book = OfferBook(3600.0, 5, 10, 1200.0, 1000, 10.0, 10)
        book.look({0: part_of(progresses[0], model)}, cold=False)
        book.make_correction(model)
        corrected = book.current.corrected
        assert corrected is not None
        hidden = np.random.default_rng(1).uniform(-1, 1, (4, WIDTH)).astype(np.float16)
        for row, top in enumerate(serving.scorer.rank(hidden, [20] * 4)):
            held = Ranked(model, None, corrected.correction).ranks(hidden[row : row + 1], [int(top.indexes[7])], [[]])
            assert held == [8]
    finally:
        twin.stop()


def part_of(progress: Progress, model: InferenceModel) -> Partition:
    folding, choosers, recent = FoldIn(10, 3600.0), FoldIn(10, 3600.0), Trending(1200.0, 1000)
    folding.restore(model.fingerprint, [], progress.choices())
    choosers.restore(model.fingerprint, progress.choosers)
    recent.merge(progress.recent_landmark, progress.recent, progress.recent_total, progress.recent_ts)
    return Partition(progress, b"", Trending(3600.0, 10), 0, 0, 1, folding, 0, choosers, recent)


def member_of(broker: MemoryBroker, store: MemoryStateStore) -> Member:
    member = Member(broker, store, 100, commit_s=1000.0, model=model_of)
    member.partitions._fold_items = member.partitions._refine_items = 10
    member.partitions._popularity_half_life_s = 1200.0
    member.batches._fold_in = True
    member.source.assign([0])
    return member


def test_choosers_of_known_items_are_summed_stored_and_taken_over():
    broker, store = new_broker(), MemoryStateStore()
    member = member_of(broker, store)
    for n in range(5):
        for item in (ITEMS[n], ITEMS[7], "unheard-of"):
            broker.append("interactions", b"u", value(f"u{n}", item, n), timestamp=NOW_MS)
    broker.append("interactions", b"u", value("u1", ITEMS[7], 9, None, "dismiss"), timestamp=NOW_MS)
    member.turns(3)
    member.commit()
    model, part = model_of(), member.partitions.owned[0]
    (chosen,) = part.choosers.snapshot()  # a user's first action tells nothing
    assert (chosen.item_id, chosen.chosen, chosen.states) == (ITEMS[7], 5, 5)
    states = [model.advance(model.start(1), [[n]])[0].astype(np.float64) for n in range(5)]
    total = np.frombuffer(chosen.total, "<i4") / 4096
    assert total == pytest.approx(sum(states), abs=5 / 4096)
    assert {item for _, item in part.folding.typical} == {ITEMS[7], "unheard-of"}
    other = member_of(broker, store)
    other.turns(1)
    assert other.partitions.owned[0].choosers.snapshot() == [chosen]
    assert other.partitions.owned[0].folding.typical == part.folding.typical


def test_what_is_popular_now_is_kept_however_often_others_were_chosen():
    recent = Trending(60.0, 100)
    sums = FoldIn(8, 3600.0, 4, recent.weight)
    sums.begin(1)

    def choose(item: str, times: int, at: int) -> None:
        for n in range(times):
            recent.add(item, at + n)
            sums.add([item], np.ones((1, 4), np.float16), [at + n])

    for n in range(8):
        choose(f"old-{n}", 100, 1000)
    for n in range(40):
        choose(f"seldom-{n}", 1, 3_600_000 + n)
        choose(f"new-{n % 4}", 1, 3_600_000 + n)
    held = {folded.item_id for folded in sums.snapshot()}
    assert {f"new-{n}" for n in range(4)} <= held
    assert not any(item.startswith("old") for item in held)


def test_earlier_choosers_fade_and_a_bound_of_none_holds_none():
    sums = FoldIn(8, 3600.0, 4)
    sums.begin(1)
    for n in range(800):
        sums.add(["a"], np.full((1, 4), -1.0 if n < 400 else 1.0, np.float16), [n])
    (folded,) = sums.snapshot()
    assert 4 <= folded.states < 8
    assert np.frombuffer(folded.total, "<i4") == pytest.approx([folded.states * 4096] * 4, abs=2)
    off = FoldIn(0, 3600.0)
    off.restore(1, [folded], [(b"1234", "a")])
    assert off.snapshot() == []
    assert off.typical == [(b"1234", "a")]
