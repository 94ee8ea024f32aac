"""What a ranking costs a user at 10,000, 100,000 and a million items: the services' exact search, and an index.

The catalogue is synthetic: items of a few hundred kinds in a space of 24 dimensions, laid into 128, all embeddings of
one length as training makes them, and hidden states near mixtures of items. That is kinder to an index than vectors
without any order. Recall: the share of the true 20 best, by products in double precision, that is found. Everything
runs on one thread, as the services do. Alone: ``make bench ARGS=ranking``.

The index is faiss' inverted file (IVF, exact distances inside): lists of about the root of the number of items, as many
of them searched as it takes for a recall of .99. It is the one that is quick to build: a new model must be in service
within five seconds.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from shared.adapters.settings import ConsumerSettings
from shared.model.coarse import BF16
from shared.model.inference import InferenceModel
from shared.model.refine import Correction
from shared.model.scorer import Scorer, largest
from tests.bench.world import WIDTH, say

K = 20
SIZES = (10_000, 100_000, 1_000_000)
LATENT = 24
KINDS = 300
ASKED = 64
BATCHES = (1, 8, 32)
WANTED_RECALL = 0.99
LEARNT_FROM = 100_000
"""Items that the index's lists are learnt from, at most."""


def catalogue(items: int) -> tuple[torch.Tensor, np.ndarray]:
    """Embeddings (items, WIDTH) float32, hidden states (ASKED, WIDTH) float16."""
    rng = np.random.default_rng(items)
    lift = rng.normal(size=(LATENT, WIDTH)) / math.sqrt(LATENT)
    kinds = rng.normal(size=(KINDS, LATENT))

    def laid_out(latent: np.ndarray) -> np.ndarray:
        found = latent @ lift + 0.05 * rng.normal(size=(len(latent), WIDTH))
        return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), np.float32)

    of_kind = kinds[rng.integers(KINDS, size=items)] + 0.5 * rng.normal(size=(items, LATENT))
    mixed = of_kind[rng.integers(items, size=(ASKED, 3))].mean(1) + 0.2 * rng.normal(size=(ASKED, LATENT))
    # Half floats between -1 and 1, as a GRU's are.
    return torch.from_numpy(laid_out(of_kind)), (4 * laid_out(mixed)).astype(np.float16)


def _model(embedding: torch.Tensor) -> InferenceModel:
    g = torch.Generator().manual_seed(1)
    names = {"gru.weight_ih_l0": (3 * WIDTH, WIDTH), "gru.weight_hh_l0": (3 * WIDTH, WIDTH)}
    names |= {"gru.bias_ih_l0": (3 * WIDTH,), "gru.bias_hh_l0": (3 * WIDTH,)}  # type: ignore[dict-item]
    weights = {name: 0.1 * torch.randn(shape, generator=g) for name, shape in names.items()}
    weights |= {"item_embedding": embedding, "item_bias": torch.zeros(len(embedding))}
    return InferenceModel("1", 1, [str(n) for n in range(len(embedding))], weights)


def _truth(embedding: torch.Tensor, hidden: np.ndarray) -> list[set[int]]:
    best = []
    for row in hidden:
        scores = np.concatenate(
            [part.astype(np.float64) @ row.astype(np.float64) for part in np.array_split(embedding.numpy(), 32)]
        )
        best.append(set(np.argpartition(-scores, K)[:K].tolist()))
    return best


def _recall(found: list[Any], truth: list[set[int]]) -> float:
    hits = [len(best & set(map(int, indexes))) / K for indexes, best in zip(found, truth, strict=True)]
    return round(float(np.mean(hits)), 4)


def _ms_each(rank: Callable[[np.ndarray], object], hidden: np.ndarray, batch: int, rounds: int) -> float:
    """Median of the rounds, milliseconds a user."""
    times = []
    for n in range(rounds):
        part = np.take(hidden, range(n * batch, (n + 1) * batch), axis=0, mode="wrap")
        began = time.perf_counter()
        rank(part)
        times.append((time.perf_counter() - began) / batch * 1000)
    return round(statistics.median(times), 4)


def _exact(embedding: torch.Tensor, hidden: np.ndarray, truth: list[set[int]], rounds: int) -> dict[str, Any]:
    """As the services rank, and what low precision alone, not scored again, would find."""
    began = time.perf_counter()
    scorer = Scorer(_model(embedding))
    made = time.perf_counter() - began

    def rank(states: np.ndarray) -> list[np.ndarray]:
        return [top.indexes for top in scorer.rank(states, [K] * len(states))]

    began = time.perf_counter()
    corrected = scorer.corrected(_correction(embedding), 1)
    correcting = time.perf_counter() - began

    def rank_corrected(states: np.ndarray) -> object:
        return corrected.rank(states, [K] * len(states))

    low = embedding.to(BF16.dtype)
    with torch.inference_mode():
        rough = torch.from_numpy(hidden.astype(np.float32)).to(BF16.dtype) @ low.T
        only_low = [c.indexes[np.argsort(-c.values, kind="stable")[:K]] for c in largest(rough, K)]
    return {
        "precision": scorer.precision,
        "ms_per_user": {str(batch): _ms_each(rank, hidden, batch, rounds) for batch in BATCHES},
        "corrected_ms_per_user": {str(batch): _ms_each(rank_corrected, hidden, batch, rounds) for batch in BATCHES},
        "corrected_in_ms": round(1000 * correcting, 2),
        "recall": _recall(rank(hidden), truth),
        "recall_not_scored_again": _recall(only_low, truth),
        "made_ready_s": round(made, 2),
    }


def _correction(embedding: torch.Tensor) -> Correction:
    """A bias on each item, and REFINE_ITEMS rows replaced, as is made anew every ten seconds."""
    rng = np.random.default_rng(2)
    extra = rng.normal(0, 0.1, len(embedding)).astype(np.float32)
    indexes = np.sort(rng.choice(len(embedding), ConsumerSettings().refine_items, replace=False))
    rows = embedding.numpy()[indexes] + rng.normal(0, 0.02, (len(indexes), WIDTH)).astype(np.float32)
    return Correction(extra, indexes, rows.astype(np.float32), 10.0)


def _index(embedding: torch.Tensor, hidden: np.ndarray, truth: list[set[int]], rounds: int) -> dict[str, Any]:
    import faiss

    faiss.omp_set_num_threads(1)
    vectors, states = embedding.numpy(), hidden.astype(np.float32)
    lists = max(64, 2 ** round(math.log2(4 * math.sqrt(len(vectors)))))
    began = time.perf_counter()
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(WIDTH), WIDTH, lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.max_points_per_centroid = max(1, LEARNT_FROM // lists)
    index.cp.min_points_per_centroid = 1
    index.cp.niter = 6
    index.train(vectors[:: max(1, len(vectors) // LEARNT_FROM)])
    index.add(vectors)
    built = time.perf_counter() - began
    probes = 1
    while True:
        index.nprobe = probes
        recall = _recall(list(index.search(states, K)[1]), truth)
        if recall >= WANTED_RECALL or probes >= lists:
            break
        probes = min(lists, 2 * probes)

    def rank(part: np.ndarray) -> object:
        return index.search(part.astype(np.float32), K)

    return {
        "ms_per_user": {str(batch): _ms_each(rank, hidden, batch, rounds) for batch in BATCHES},
        "recall": recall,
        "lists": lists,
        "searched": probes,
        "built_s": round(built, 1),
    }


def run(quick: bool = False) -> dict[str, Any]:
    """Prints a line for each size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    try:
        for items in SIZES:
            rounds = 5 if quick else 15
            embedding, hidden = catalogue(items)
            truth = _truth(embedding, hidden)
            exact, index = _exact(embedding, hidden, truth, rounds), _index(embedding, hidden, truth, rounds)
            results[str(items)] = {"exact": exact, "index": index}
            _say(items, exact, index)
    finally:
        torch.set_num_threads(threads)
    return results


def _say(items: int, exact: dict[str, Any], index: dict[str, Any]) -> None:
    ours, theirs, now = exact["ms_per_user"], index["ms_per_user"], exact["corrected_ms_per_user"]
    say(
        f"ranking, {items:,} items, width {WIDTH}, one thread, ms a user alone / of 8 / of 32: exact "
        f"({exact['precision']}, scored again) {ours['1']:.2f} / {ours['8']:.2f} / {ours['32']:.2f}, recall "
        f"{exact['recall']:.3f} (not scored again: {exact['recall_not_scored_again']:.3f}), ready in "
        f"{exact['made_ready_s']:.1f} s; corrected by the stream (a bias each, {ConsumerSettings().refine_items} rows; "
        f"{exact['corrected_in_ms']:.1f} ms) to plain "
        + " / ".join(f"{now[batch] / ours[batch]:.2f}" for batch in ours)
        + f"; index {theirs['1']:.2f} / {theirs['8']:.2f} / {theirs['32']:.2f}, recall "
        f"{index['recall']:.3f}, {index['searched']} of {index['lists']} lists, built in {index['built_s']:.0f} s; "
        f"exact to index " + " / ".join(f"{ours[batch] / theirs[batch]:.1f}" for batch in ours)
    )
