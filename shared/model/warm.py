"""A known model as the start of another: its catalogue grown, each new item where its neighbours in sessions are."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from shared.model.dataset import Sessions
from shared.model.network import Weights, check_weights, grow

PRIOR = 2.0
"""Imagined neighbours at the mean of all items, so that one neighbour alone does not make a twin of itself."""


def warm_start(parent: Mapping[str, torch.Tensor], sessions: Sessions, items: int, seed: int) -> Weights:
    """The parent's weights for a catalogue of ``items``, whose first ones are the parent's.

    A new item begins as ``grow`` says, moved by the mean of the known items right before and after it in the sessions:
    what is taken together is near each other.
    """
    known, _ = check_weights(parent)
    weights = grow(parent, items - known, seed)
    new, neighbour = _neighbours(sessions, known)
    if not len(new):
        return weights
    embedding = weights["item_embedding"]
    mean = embedding[:known].mean(0)
    place = torch.from_numpy(new - known)
    count = torch.bincount(place, minlength=items - known).float()[:, None]  # (new items, 1)
    moved = torch.zeros(items - known, embedding.shape[1])
    moved.index_add_(0, place, embedding[torch.from_numpy(neighbour)] - mean)
    embedding[known:] += moved / (count + PRIOR)
    return weights


def _neighbours(sessions: Sessions, known: int) -> tuple[np.ndarray, np.ndarray]:
    """(new item, known item) for each two that are next to each other in a session, (K,) int64 each."""
    left, right = sessions.items[:-1].astype(np.int64), sessions.items[1:].astype(np.int64)
    inside = np.ones(max(0, len(sessions.items) - 1), bool)
    inside[sessions.starts[1:-1] - 1] = False
    left, right = left[inside], right[inside]
    first, second = (left >= known) & (right < known), (right >= known) & (left < known)
    return np.concatenate([left[first], right[second]]), np.concatenate([right[first], left[second]])
