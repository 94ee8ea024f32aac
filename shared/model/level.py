"""What became popular in the last week of a long log, as the bias of the finished model.

A model trained on months of sessions predicts what is popular over months, and tomorrow resembles the last week. The
bias is the one that serving adds for the popularity of the hour (popularity.py): the log of how many times as often an
item was chosen as the model expected, shrunk by how little is known. It is applied in so far as such ratios last: the
share of it is the one under which the ratios of the week before make the choices of the last week most likely. A log of
less than four weeks says nothing about weeks, and leaves the model as it is.
"""

from __future__ import annotations

import numpy as np
import torch

from shared.model.dataset import Sessions
from shared.model.dismissals import Ints
from shared.model.evaluate import advanced
from shared.model.network import Network, Weights
from shared.model.popularity import average_shares, log_ratios

WEEK_MS = 7 * 86_400_000
LEAST_MS = 4 * WEEK_MS
STATES = 2048
"""Over which the model's own shares are averaged."""
SHARES = np.linspace(0, 1, 11)
"""Of the bias: one of these is applied."""
_SPARE = 32
"""As many pairs as states are wanted, times this, are run through the GRU: it bounds memory whatever the log's size."""
_SCORES_AT_ONCE = 256


def with_level(weights: Weights, sessions: Sessions, level: float) -> Weights:
    """The same weights with item_bias raised or lowered.

    sessions: all that the model learnt, in its own indexes. level: see TrainConfig.
    """
    ended = sessions.ended_at
    if not level or not len(ended) or ended.max() - ended.min() < LEAST_MS:
        return weights
    age = ended.max() - ended
    last, before = sessions.select(age < WEEK_MS), sessions.select((age >= WEEK_MS) & (age < 2 * WEEK_MS))
    if not last.pairs or not before.pairs:
        return weights
    network = Network.from_weights(weights)
    chosen, expected = _choices(network, last)
    bias = log_ratios(chosen, expected)
    share = level * lasting_share(log_ratios(*_choices(network, before)), chosen, expected)
    return {**weights, "item_bias": weights["item_bias"] + torch.from_numpy((share * bias).astype(np.float32))}


def lasting_share(bias: Ints, chosen: Ints, expected: Ints) -> float:
    """How much of an earlier bias explains later choices best, 0 to 1. All (I,)."""
    total = expected.sum()
    likelihood = [
        share * (chosen @ bias) - chosen.sum() * np.log(expected @ np.exp(share * bias) / total) for share in SHARES
    ]
    return float(SHARES[int(np.argmax(likelihood))])


def _choices(network: Network, sessions: Sessions) -> tuple[Ints, Ints]:
    """(I,) float64 each: how often each item was chosen next in these sessions, and how often by the model."""
    targets = np.delete(sessions.items, sessions.starts[:-1][sessions.lengths > 0])
    chosen = np.bincount(targets, minlength=len(network.embedding)).astype(np.float64)
    states, current = _states(network, sessions)
    left_out = None if network.repeats else current
    shares = average_shares(states, network.embedding, network.bias, _SCORES_AT_ONCE, left_out)
    return chosen, len(targets) * shares


def _states(network: Network, sessions: Sessions) -> tuple[torch.Tensor, torch.Tensor]:
    """((S, D) hidden states from which something was chosen, (S,) the current item at each): STATES at most, evenly."""
    some = sessions.select(np.arange(0, len(sessions), max(1, sessions.pairs // (_SPARE * STATES))))
    sessions = some if some.pairs else sessions
    found: list[torch.Tensor] = []
    current: list[Ints] = []
    with torch.inference_mode():
        for window, after in advanced(network, sessions):
            at = np.flatnonzero(window.valid)
            found.append(after[torch.from_numpy(at)])
            current.append(window.inputs.ravel()[at])
    states, items = torch.cat(found), np.concatenate(current)
    even = np.linspace(0, len(states) - 1, min(STATES, len(states))).astype(np.int64)
    return states[torch.from_numpy(even)], torch.from_numpy(items[even])
