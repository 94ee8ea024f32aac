"""Full ranking on held-out sessions: where in the whole catalogue does the model rank what came next?"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch.nn import functional

from shared.model.dataset import Sessions, windows
from shared.model.network import Network, Weights

SCORE_BYTES = 64 << 20
"""Scores held at once, bytes: larger gains nothing."""


@dataclass(frozen=True, slots=True)
class Metrics:
    """Means over all predicted events."""

    recall20: float
    mrr20: float
    events: int

    def to_json(self) -> dict[str, float]:
        """For a manifest."""
        return asdict(self)


def ranks(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """scores (N, I), targets (N,) -> (N,) rank of the target, from 1. Ties, and scores that are no number, count
    against it."""
    own = scores.gather(1, targets[:, None])
    return scores.shape[1] - (scores < own).sum(1)


def metrics_of(rank: torch.Tensor, k: int = 20) -> Metrics:
    """Recall and mean reciprocal rank at k; the latter counts 0 where the rank is beyond k."""
    hit = rank <= k
    count = max(1, len(rank))
    return Metrics(hit.sum().item() / count, (hit / rank.double()).sum().item() / count, len(rank))


def evaluate(weights: Weights, test: Sessions, on_progress: Callable[[int, int], None] | None = None) -> Metrics:
    """Rank all items for every event of each session but its first, given those before it.

    test: indexed by the model's own catalogue, so without items that it does not know. Memory: SCORE_BYTES and the
    weights. on_progress: (events done, all events).
    """
    network = Network.from_weights(weights)
    rows = max(1, SCORE_BYTES // (4 * len(network.embedding)))
    found: list[torch.Tensor] = []
    hidden: torch.Tensor | None = None
    done, total = 0, test.pairs
    with torch.inference_mode():
        for window in windows(test, 4096, 64):
            inputs = functional.embedding(torch.from_numpy(window.inputs), network.embedding)
            carried = None if window.fresh or hidden is None else hidden[:, : inputs.shape[1]].contiguous()
            outputs, hidden = network.gru(inputs, carried)
            at = torch.from_numpy(np.flatnonzero(window.valid))
            states = outputs.view(-1, network.width)[at]
            targets = torch.from_numpy(window.targets).view(-1)[at]
            for part in range(0, len(at), rows):
                chunk = slice(part, part + rows)
                scores = torch.addmm(network.bias, states[chunk], network.embedding.T)
                found.append(ranks(scores, targets[chunk]))
            done += len(at)
            if on_progress:
                on_progress(done, total)
    return metrics_of(torch.cat(found) if found else torch.zeros(0, dtype=torch.int64))


def popularity(train: Sessions, test: Sessions, items: int) -> Metrics:
    """The baseline: the same ranking for all, by how often an item occurs in training."""
    counts = torch.from_numpy(np.bincount(train.items, minlength=items))
    rank = items - (counts[None, :] < counts[:, None]).sum(1) if items <= 4096 else _ranks_of_counts(counts)
    targets = np.delete(test.items, test.starts[:-1]) if len(test) else test.items
    return metrics_of(rank[torch.from_numpy(targets.astype(np.int64))])


def _ranks_of_counts(counts: torch.Tensor) -> torch.Tensor:
    """counts (I,) -> (I,) rank of each item, ties against it."""
    ordered = counts.sort().values
    return len(counts) - torch.searchsorted(ordered, counts, side="left")


def timer() -> Callable[[], float]:
    """Seconds since the call."""
    began = time.monotonic()
    return lambda: time.monotonic() - began
