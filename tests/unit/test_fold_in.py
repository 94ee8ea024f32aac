"""New items get rows from the states of those who chose them; the sums are the same however they came about."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.core.errors import StateDamaged
from shared.core.progress import Folded, Progress, decode_progress, encode_progress
from shared.model.config import ModelConfig, TrainConfig
from shared.model.dataset import Sessions
from shared.model.fit import fit
from shared.model.fold_in import TYPICAL, Bases, Basis, FoldIn, log_norms, merged
from shared.model.inference import InferenceModel

GROUPS, PER_GROUP, NEW = 6, 10, 2
"""Sessions stay within a group of items; the last ``NEW`` of each group are unknown to the model."""


def sessions(rng: np.random.Generator, count: int, choices: int) -> list[list[tuple[int, int]]]:
    """Each a list of (group, item within the group), 6 long."""
    groups = rng.integers(0, GROUPS, count)
    return [[(int(g), int(rng.integers(0, choices))) for _ in range(6)] for g in groups]


@pytest.fixture(scope="module")
def trained() -> InferenceModel:
    torch.manual_seed(0)
    known = PER_GROUP - NEW
    log = sessions(np.random.default_rng(1), 600, known)
    items = np.array([g * known + i for s in log for g, i in s], np.int32)
    starts = np.arange(0, len(items) + 1, 6).astype(np.int64)
    config = TrainConfig(model=ModelConfig(16), epochs=6, batch_events=128)
    fitted = fit(config, Sessions(items, starts, np.zeros(len(log), np.int64)), GROUPS * known)
    names = [f"{g}-{i}" for g in range(GROUPS) for i in range(known)]
    return InferenceModel("1", 1, names, fitted.weights)


def hits(model: InferenceModel, rows: tuple[np.ndarray, np.ndarray], seed: int) -> float:
    """Share of new items that were among the best five for the state before them."""
    names = {f"{g}-{i}": n for n, (g, i) in enumerate(new_items())}
    embedding = np.concatenate([model.embedding.numpy(), rows[0]])
    bias = np.concatenate([model.bias.numpy(), rows[1]])
    found = []
    for name, hidden, _ in choices_of_new(model, seed):
        scores = embedding @ hidden.astype(np.float32) + bias
        target = scores[len(model.items) + names[name]]
        found.append((scores >= target).sum() <= 5)
    return float(np.mean(found))


def new_items() -> list[tuple[int, int]]:
    return [(g, i) for g in range(GROUPS) for i in range(PER_GROUP - NEW, PER_GROUP)]


def choices_of_new(model: InferenceModel, seed: int) -> list[tuple[str, np.ndarray, int]]:
    """(new item, hidden state before it, time) of sessions in which known and new items come alike."""
    found = []
    for n, session in enumerate(sessions(np.random.default_rng(seed), 300, PER_GROUP)):
        hidden = model.start(1)
        for g, i in session:
            if i >= PER_GROUP - NEW:
                found.append((f"{g}-{i}", hidden[0], n))
            else:
                hidden = model.advance(hidden, [model.known([f"{g}-{i}"])])
    return found


def typical_of(model: InferenceModel) -> list[bytes]:
    """States before any events, as a consumer keeps them."""
    folding = FoldIn(10, 1.0)
    for n, session in enumerate(sessions(np.random.default_rng(9), 2 * TYPICAL, PER_GROUP - NEW)):
        known = model.known([f"{g}-{i}" for g, i in session[: 1 + n % 5]])
        folding.observe(model.advance(model.start(1), [known]), [1000 * n], ["any"])
    assert len(folding.typical) == TYPICAL
    return [state for state, _ in folding.typical]


def basis_of(model: InferenceModel) -> Basis:
    basis = Bases(model).of(typical_of(model))
    assert basis is not None
    return basis


def folded_in(model: InferenceModel, seed: int) -> FoldIn:
    fold = FoldIn(100, 3600.0)
    for name, hidden, ts in choices_of_new(model, seed):
        fold.add([name], hidden[None], [ts])
    return fold


def test_new_items_are_hit_more_often_and_more_than_their_popularity_explains(trained):
    candidates = merged(folded_in(trained, 2).snapshot(), 3)
    assert [c.item_id for c in candidates] == [f"{g}-{i}" for g, i in new_items()]
    shares = np.full(len(candidates), 1 / (GROUPS * PER_GROUP))
    basis = basis_of(trained)
    rows = basis.rows(candidates, shares)
    none = np.zeros_like(rows.embedding)
    with_states = hits(trained, (rows.embedding, rows.bias), 3)
    popularity_only = hits(trained, (none, basis.bias(none, shares).astype(np.float32)), 3)
    assert with_states > 0.3
    assert with_states > 2 * popularity_only


def test_the_bias_gives_an_item_its_share_of_actions(trained):
    candidates = merged(folded_in(trained, 2).snapshot(), 3)
    shares = np.linspace(0.001, 0.05, len(candidates))
    rows = basis_of(trained).rows(candidates, shares)
    states = np.frombuffer(b"".join(typical_of(trained)), np.float16).reshape(-1, 16).astype(np.float32)
    known = states @ trained.embedding.numpy().T + trained.bias.numpy()
    norm = np.log(np.exp(known).sum(1, keepdims=True))
    given_share = np.exp(states @ rows.embedding.T + rows.bias - norm).mean(0)
    assert given_share == pytest.approx(shares, rel=1e-3)


def test_rows_are_the_same_wherever_they_are_made(trained):
    candidates = merged(folded_in(trained, 2).snapshot(), 3)
    shares = [0.01] * len(candidates)
    one, other = (basis_of(trained).rows(candidates, shares) for _ in range(2))
    assert one.embedding.tobytes() == other.embedding.tobytes()
    assert one.bias.tobytes() == other.bias.tobytes()


def test_items_chosen_too_seldom_wait(trained):
    parts = [Folded("a", 2, 2, 1, np.full(16, 4096, "<i4").tobytes()), Folded("b", 2, 0, 1, bytes(64))]
    assert merged(parts, 3) == []
    (a,) = merged([*parts, Folded("a", 1, 0, 5, bytes(64))], 3)
    assert (a.item_id, a.chosen, a.states) == ("a", 3, 2)
    assert a.mean.tolist() == [0.5] * 16


def test_no_typical_states_make_no_basis_and_known_ones_no_new_work(trained):
    bases = Bases(trained)
    states = [row.tobytes() for row in np.random.default_rng(0).uniform(-1, 1, (40, 16)).astype(np.float16)]
    assert bases.of([]) is None
    bases.of(states[:30])
    again, afresh = bases.of(states[10:]), Bases(trained).of(states[10:])
    assert again is not None
    assert afresh is not None
    assert again.mean.tolist() == afresh.mean.tolist()
    one = np.ones((1, 16))
    assert again.bias(one, [0.1]) == pytest.approx(afresh.bias(one, [0.1]), abs=1e-5)
    assert bases.of([b"of another width"]) is None


def test_typical_states_are_spaced_in_time_bounded_and_stored():
    fold = FoldIn(4, 1.0)
    fold.begin(1)
    states = np.arange(1, 2001, dtype=np.float16).reshape(-1, 1)
    items = [str(n) for n in range(2000)]
    fold.observe(states, range(0, 200 * 2000, 200), items)  # at once until there are 64, then one of five
    assert [np.frombuffer(s, np.float16)[0] for s, _ in fold.typical] == [1684.0 + 5 * n for n in range(TYPICAL)]
    assert [item for _, item in fold.typical] == [str(1683 + 5 * n) for n in range(TYPICAL)]
    other = FoldIn(4, 1.0)
    other.restore(1, fold.snapshot(), fold.typical)
    assert other.typical == fold.typical
    other.observe(np.zeros((1, 1), np.float16), [10**9], ["a"])
    assert other.typical == fold.typical
    other.begin(2)
    assert other.typical == []


def test_an_item_without_any_state_is_as_likely_for_everyone(trained):
    basis = basis_of(trained)
    rows = basis.rows(merged([Folded("a", 9, 0, 1, bytes(64))], 3), [0.01])
    states = np.frombuffer(b"".join(typical_of(trained)), np.float16).reshape(-1, 16).astype(np.float32)
    norm = log_norms(trained, states)
    assert np.exp(states @ rows.embedding[0] + rows.bias[0] - norm).mean() == pytest.approx(0.01, rel=1e-3)
    # The row makes up for the denominator, as far as that is linear: a row of zeros would not.
    assert np.std(states @ rows.embedding[0] - norm) < 0.8 * np.std(norm)


def test_no_candidates_no_rows(trained):
    assert basis_of(trained).rows([], []).embedding.shape == (0, 16)


events = st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(-2048, 2048), st.integers(0, 9_000)), max_size=60)


@settings(max_examples=100, deadline=None)
@given(log=events, cuts=st.lists(st.integers(0, 60), max_size=5), stored=st.booleans())
def test_sums_do_not_depend_on_batches_or_on_being_stored(log, cuts, stored):
    def hidden(value):
        return np.full((1, 3), value / 2048, np.float16)

    whole = FoldIn(5, 1.0)
    for item, value, ts in log:
        whole.add([item], hidden(value), [ts])
    parts = FoldIn(5, 1.0)
    edges = [0, *sorted(min(c, len(log)) for c in cuts), len(log)]
    for begin, end in itertools.pairwise(edges):
        batch = log[begin:end]
        states = np.concatenate([hidden(v) for _, v, _ in batch]) if batch else np.zeros((0, 3), np.float16)
        parts.add([i for i, _, _ in batch], states, [t for _, _, t in batch])
        if stored:
            progress = Progress("life", 0, end, 0, [], 0.0, 1, parts.snapshot())
            parts = FoldIn(5, 1.0)
            parts.restore(1, decode_progress(encode_progress(progress, b"")).folded)
    assert parts.snapshot() == whole.snapshot()
    assert len(whole) <= 5


def test_the_least_chosen_and_oldest_make_room():
    fold = FoldIn(4, 1.0)
    one = np.ones((1, 2), np.float16)
    for item, ts in [("often", 0), ("often", 0), ("often", 0), ("old", 0), ("older", 0), ("new", 900), ("newest", 950)]:
        fold.add([item], one, [ts])
    assert [f.item_id for f in fold.snapshot()] == ["often", "older", "new", "newest"]


def test_another_model_starts_anew():
    fold = FoldIn(4, 1.0)
    fold.begin(1)
    fold.add(["a"], np.ones((1, 2), np.float16), [1])
    fold.begin(1)
    assert len(fold) == 1
    fold.begin(2)
    assert (fold.fingerprint, fold.snapshot()) == (2, [])


def test_progress_stored_before_there_was_folding_in_is_still_read():
    import struct
    import zlib

    import msgspec

    body = msgspec.msgpack.encode(["life", 0, 5, 1, [["a", 1.0]]])
    read = decode_progress(struct.pack("<II", 1, zlib.crc32(body)) + body)
    assert (read.next_offset, read.fingerprint, read.folded) == (5, 0, [])
    with pytest.raises(StateDamaged):
        decode_progress(struct.pack("<II", 1, zlib.crc32(body)) + body[:-1])
