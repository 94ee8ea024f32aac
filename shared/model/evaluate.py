"""Full ranking on held-out sessions: where in the whole catalogue does the model rank what came next?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch.nn import functional

from shared.model.dataset import Sessions, Window, windows
from shared.model.dismissals import Ints
from shared.model.group import ALONE, Group
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


def evaluate(
    weights: Weights,
    test: Sessions,
    on_progress: Callable[[int, int], None] | None = None,
    group: Group = ALONE,
) -> Metrics:
    """Rank all items for every event of each session but its first, given those before it. See ``event_ranks``."""
    rank = event_ranks(weights, test, on_progress=on_progress, group=group)
    return metrics_of(rank[rank > 0])


def event_ranks(
    weights: Weights,
    test: Sessions,
    asked: Ints | None = None,
    *,
    on_progress: Callable[[int, int], None] | None = None,
    group: Group = ALONE,
) -> torch.Tensor:
    """(events,) int64: where the model ranks each event, from 1, given those before it in its session; 0: not asked.

    test: indexed by the model's own catalogue, so without items that it does not know. asked: (events,) bool, default:
    all; the first event of a session is never ranked. Memory: SCORE_BYTES and the weights. on_progress: (events done,
    all events). group: each process ranks its share of the sessions, and all get all ranks.
    """
    network = Network.from_weights(weights)
    rows = max(1, SCORE_BYTES // (4 * len(network.embedding)))
    wanted = np.ones(len(test.items), bool) if asked is None else asked.copy()
    wanted[test.starts[:-1][test.lengths > 0]] = False
    found = torch.zeros(len(test.items), dtype=torch.int64)
    done, total = 0, int(wanted.sum())
    mine, where = _share(test, wanted, group)
    with torch.inference_mode():
        for window, after in advanced(network, mine):
            at = np.flatnonzero(window.valid)
            target = where[window.places.ravel()[at] + 1]  # (N,) places in test.items
            at, target = at[wanted[target]], torch.from_numpy(target[wanted[target]])
            states = after[torch.from_numpy(at)]
            targets = torch.from_numpy(window.targets.ravel()[at])
            current = torch.from_numpy(window.inputs.ravel()[at])
            for part in range(0, len(at), rows):
                chunk = slice(part, part + rows)
                scores = torch.addmm(network.bias, states[chunk], network.embedding.T)
                if not network.repeats:
                    scores.scatter_(1, current[chunk, None], -torch.inf)
                found[target[chunk]] = ranks(scores, targets[chunk])
            done += len(at)
            if on_progress:
                on_progress(done, total)
    group.add(found)
    return found


def advanced(network: Network, sessions: Sessions) -> Iterator[tuple[Window, torch.Tensor]]:
    """(window, (T * B, D) hidden states after each of its inputs) for all sessions. Under torch.inference_mode."""
    hidden: torch.Tensor | None = None
    for window in windows(sessions, 4096, 64):
        inputs = functional.embedding(torch.from_numpy(window.inputs), network.embedding)
        carried = None if window.fresh or hidden is None else hidden[:, : inputs.shape[1]].contiguous()
        outputs, hidden = network.gru(inputs, carried)
        yield window, outputs.view(-1, network.width)


def _share(test: Sessions, wanted: Ints, group: Group) -> tuple[Sessions, Ints]:
    """The sessions that this process ranks, of those in which anything is wanted, and the place in ``test`` of each of
    their events."""
    session = np.repeat(np.arange(len(test)), test.lengths)
    chosen = np.unique(session[wanted])[group.rank :: group.size]
    return test.select(chosen), np.flatnonzero(np.isin(session, chosen))


def popularity(train: Sessions, test: Sessions, items: int) -> Metrics:
    """The baseline: the same ranking for all, by how often an item occurs in training; ties count against it."""
    rank = _ranks_of_counts(torch.from_numpy(np.bincount(train.items, minlength=items)))
    targets = np.delete(test.items, test.starts[:-1]) if len(test) else test.items
    return metrics_of(rank[torch.from_numpy(targets.astype(np.int64))])


def _ranks_of_counts(counts: torch.Tensor) -> torch.Tensor:
    """counts (I,) -> (I,) rank of each item, ties against it."""
    ordered = counts.sort().values
    return len(counts) - torch.searchsorted(ordered, counts, side="left")
