"""The rank of one item in a full ranking, without the ranking: how many others have a greater score?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from shared.model.fold_in import Rows
from shared.model.inference import Hidden, InferenceModel
from shared.model.refine import Correction

ROWS = 32
"""States whose scores are held at once."""

_TILE_ITEMS = 1 << 15
"""Items scored at once: 4 MB of scores."""

_CLOSE = 1e-6
"""Scores nearer than this (of the product's norms) count as equal: sums in another order differ by less."""


class Ranked:
    """What is ranked: a model's catalogue and, with indexes after it, rows of new items."""

    def __init__(self, model: InferenceModel, new: Rows | None = None, correction: Correction | None = None) -> None:
        """correction: of the model's own rows."""
        self._count = len(model.embedding)
        bias = model.bias if correction is None else model.bias + torch.from_numpy(correction.extra)
        self._tables = [(model.embedding, bias)]
        self._correction = correction if correction is not None and len(correction.indexes) else None
        if self._correction is not None:
            at = torch.from_numpy(self._correction.indexes)
            self._replacing = torch.from_numpy(self._correction.embedding), bias[at]  # (R, D), (R,)
            bias[at] = -torch.inf  # the table is too large to be copied for a few rows
        if new is not None and new.items:
            self._tables.append((torch.from_numpy(new.embedding), torch.from_numpy(new.bias)))

    def ranks(self, hidden: Hidden, items: Sequence[int], left_out: Sequence[Sequence[int]]) -> list[int]:
        """1 + the number of items with a greater score; ties count against the item. 0: the item itself is left out.

        hidden: (B, D) float16; items: (B,) indexes; left_out: for each state, indexes that its ranking does not hold.
        """
        found: list[int] = []
        with torch.inference_mode():
            for at in range(0, len(items), ROWS):
                part = slice(at, at + ROWS)
                found += self._rank_rows(hidden[part], items[part], left_out[part])
        return found

    def _rank_rows(self, hidden: Hidden, items: Sequence[int], left_out: Sequence[Sequence[int]]) -> list[int]:
        states = torch.from_numpy(np.ascontiguousarray(hidden, dtype=np.float32))  # (B, D)
        chosen, bias = self._take(items)  # (B, D), (B,)
        products = torch.linalg.vector_norm(chosen, dim=1) * torch.linalg.vector_norm(states, dim=1)
        # A little below the item's own score, so that the item itself counts and ranks start at one.
        floor = (chosen * states).sum(1) + bias - _CLOSE * (products + bias.abs())  # (B,)
        counts = torch.zeros(len(items), dtype=torch.int64)
        for embedding, biases in self._tables:
            for at in range(0, len(embedding), _TILE_ITEMS):
                tile = slice(at, at + _TILE_ITEMS)
                scores = torch.addmm(biases[tile], states, embedding[tile].T)  # (B, tile)
                counts += torch.count_nonzero(scores >= floor[:, None], dim=1)
        if self._correction is not None:
            embedding, biases = self._replacing
            counts += torch.count_nonzero(torch.addmm(biases, states, embedding.T) >= floor[:, None], dim=1)
        found = counts.tolist()
        for row, out in enumerate(left_out):
            if items[row] in out:
                found[row] = 0
            elif out:
                others, their_bias = self._take(sorted(set(out)))
                above = others @ states[row] + their_bias >= floor[row]
                found[row] = max(1, found[row] - int(above.sum()))
        return found

    def _take(self, indexes: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, D) embeddings and (n,) biases."""
        at = torch.tensor(indexes)
        embedding, bias = self._tables[0]
        old, new = at.clamp(max=self._count - 1), (at - self._count).clamp(min=0)
        rows, their_bias = embedding[old], bias[old]
        if self._correction is not None:
            ours, row = (torch.from_numpy(found) for found in self._correction.replaced(old.numpy()))
            rows[ours], their_bias[ours] = (part[row] for part in self._replacing)
        if len(self._tables) == 1:
            return rows, their_bias
        is_new = at >= self._count
        more, more_bias = self._tables[1]
        return torch.where(is_new[:, None], more[new], rows), torch.where(is_new, more_bias[new], their_bias)
