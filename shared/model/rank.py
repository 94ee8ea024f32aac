"""The rank of one item in a full ranking, without the ranking: how many others have a greater score?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from shared.model.inference import Hidden, InferenceModel

ROWS = 32
"""States whose scores are held at once."""

_TILE_ITEMS = 1 << 15
"""Items scored at once: 4 MB of scores."""

_CLOSE = 1e-6
"""Scores nearer than this (of the product's norms) count as equal: sums in another order differ by less."""


def ranks(model: InferenceModel, hidden: Hidden, items: Sequence[int], left_out: Sequence[Sequence[int]]) -> list[int]:
    """1 + the number of items with a greater score; ties count against the item. 0: the item itself is left out.

    hidden: (B, D) float16; items: (B,) indexes; left_out: for each state, indexes that its ranking does not hold.
    """
    found: list[int] = []
    with torch.inference_mode():
        for at in range(0, len(items), ROWS):
            part = slice(at, at + ROWS)
            found += _rank_rows(model, hidden[part], items[part], left_out[part])
    return found


def _rank_rows(
    model: InferenceModel, hidden: Hidden, items: Sequence[int], left_out: Sequence[Sequence[int]]
) -> list[int]:
    states = torch.from_numpy(np.ascontiguousarray(hidden, dtype=np.float32))  # (B, D)
    chosen = model.embedding[torch.tensor(items)]  # (B, D)
    bias = model.bias[torch.tensor(items)]
    products = torch.linalg.vector_norm(chosen, dim=1) * torch.linalg.vector_norm(states, dim=1)
    # A little below the item's own score, so that the item itself counts and ranks start at one.
    floor = (chosen * states).sum(1) + bias - _CLOSE * (products + bias.abs())  # (B,)
    counts = torch.zeros(len(items), dtype=torch.int64)
    for at in range(0, len(model.embedding), _TILE_ITEMS):
        tile = slice(at, at + _TILE_ITEMS)
        scores = torch.addmm(model.bias[tile], states, model.embedding[tile].T)  # (B, tile)
        counts += torch.count_nonzero(scores >= floor[:, None], dim=1)
    found = counts.tolist()
    for row, out in enumerate(left_out):
        if items[row] in out:
            found[row] = 0
        elif out:
            others = torch.tensor(sorted(set(out)))
            above = model.embedding[others] @ states[row] + model.bias[others] >= floor[row]
            found[row] -= int(above.sum())
    return [max(1, rank) if items[row] not in left_out[row] else 0 for row, rank in enumerate(found)]
