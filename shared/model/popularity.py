"""What is popular now as a bias of the items that a model knows: a correction for what its training could not know.

A model predicts, on average over users, each item with a share q_i. Of what was chosen lately the item has another
share, and if what users want given their states has only shifted in level, scores are put right by adding the log of
the ratio (label shift; Saerens, Latinne and Decaestecker, 2002). The ratio is known from few choices, so it is
estimated as a disease's rate in a small district is: of W choices lately w_i were of the item, W q_i were expected, and
over all items the true ratios are spread like a gamma distribution with mean 1 and shape k (Clayton and Kaldor, 1987):

    bias_i = log((w_i + k) / (W q_i + k))

k is the one that makes all counts together most likely. Where popularity has hardly moved k is large, and the bias
vanishes; on news k is about one, and yesterday's headlines make room for today's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from shared.core.trending import Trending
from shared.model.inference import InferenceModel

SHAPES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
"""k is one of these, or infinite: popularity has not moved."""

EVIDENCE = 5.0
"""By which the log likelihood of a finite k must be above that of an infinite one: chance gives less than that."""

STATES = 64
"""Typical states that the model's own shares are averaged over; 256 gave the same Recall@20 within .003."""

_AT_ONCE = 16
"""Rows of scores held at once: 3 MB for 50,000 items; others get their turn in between."""


def bias_now(model: InferenceModel, typical: Sequence[bytes], recent: Trending, keep: int) -> np.ndarray | None:
    """(I,) float32 to add to the scores of the model's items; None where it would change nothing.

    typical: recent states of this model, (D,) float16 each. recent: what was chosen lately; keep: items counted in each
    partition, so that where there are so many, others may have been chosen as often as the least of them.
    """
    states = [state for state in typical if len(state) == 2 * model.width]
    weights, total = recent.counts()
    if not states or total <= 0:
        return None
    expected = total * shares_of(model, spread(states, STATES))
    chosen = np.zeros(len(expected))
    index = model.index
    known = [(at, weight) for item, weight in weights.items() if (at := index.get(item)) is not None]
    if len(weights) >= keep:
        chosen = np.minimum(expected, min(weights.values()))
    if known:
        places, counted = zip(*known, strict=True)
        chosen[np.array(places)] = counted
    bias = log_ratios(chosen, expected)
    return bias.astype(np.float32) if bias.any() else None


def spread(states: Sequence[bytes], most: int) -> np.ndarray:
    """(S, D) float16: at most so many of them, evenly picked. states: at least one, (D,) float16 each."""
    count = min(len(states), most)
    picked = b"".join(states[number * len(states) // count] for number in range(count))
    return np.frombuffer(picked, np.float16).reshape(count, -1)


def log_ratios(chosen: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """(I,) float64: log of how many times as popular as expected each item is. chosen, expected: (I,) counts."""
    shape = best_shape(chosen, expected)
    if shape == math.inf:
        return np.zeros(len(expected))
    return np.asarray(np.log((chosen + shape) / (expected + shape)))


def best_shape(chosen: np.ndarray, expected: np.ndarray) -> float:
    """The k with the largest likelihood: counts are negative binomial, or Poisson where k is infinite. chosen,
    expected: (I,)."""
    some = chosen > 0
    counts, means = torch.from_numpy(chosen[some]), expected[some]
    best, found = EVIDENCE - expected.sum(), math.inf
    for k in SHAPES:
        likelihood = -k * np.log1p(expected / k).sum() - (chosen[some] * np.log(means + k)).sum()
        likelihood += float((torch.lgamma(counts + k) - torch.lgamma(torch.tensor(k, dtype=torch.float64))).sum())
        if likelihood > best:
            best, found = likelihood, k
    return found


def shares_of(model: InferenceModel, hidden: np.ndarray) -> np.ndarray:
    """(I,) float64: the probability of each item, averaged over states. hidden: (S, D)."""
    states = torch.from_numpy(hidden.astype(np.float32))
    return average_shares(states, model.embedding, model.bias, _AT_ONCE)


def average_shares(
    states: torch.Tensor,
    embedding: torch.Tensor,
    bias: torch.Tensor,
    at_once: int,
    left_out: torch.Tensor | None = None,
) -> np.ndarray:
    """(I,) float64: the probability of each item, averaged over states (S, D). at_once: rows of scores held at a time;
    left_out (S,): an item that each state does not choose; None: it may choose any."""
    total = torch.zeros(len(bias))
    with torch.inference_mode():
        for at in range(0, len(states), at_once):
            part = slice(at, at + at_once)
            scores = torch.addmm(bias, states[part], embedding.T)
            if left_out is not None:
                scores.scatter_(1, left_out[part, None], -torch.inf)
            total += scores.softmax(1).sum(0)
    return (total / len(states)).double().numpy()
