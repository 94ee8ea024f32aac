"""The best items for hidden states: found among approximate scores, ordered by exact ones.

An item's score is its embedding's product with the hidden state plus its bias. All items are scored in low precision;
the best of them, with a margin, are scored again in double precision, and these scores decide. If the k-th exact
score is not above everything that an item outside the margin could have, the margin is widened for that state. So the
answer is that of an exact search over the whole catalogue, and does not depend on which states shared a batch.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from shared.model.coarse import Catalogue, Precision
from shared.model.inference import Hidden, InferenceModel

_RESCORE_ELEMENTS = 1 << 20
"""Embedding values scored exactly at once: 8 MB in double precision."""

_ROWS = 32
"""States whose approximate scores are held at once."""


class TopItems(NamedTuple):
    """indexes (n,) int64 and scores (n,) float64, best first; scores are rounded to six significant digits."""

    indexes: np.ndarray
    scores: np.ndarray


class Scorer:
    """Ranks the catalogue of one model. Not for use by several threads at once."""

    def __init__(self, model: InferenceModel, precision: Precision | None = None) -> None:
        self.model = model
        self._catalogue = Catalogue(model.embedding, model.bias, precision)
        self._embedding = model.embedding.numpy()  # (I, D) float32
        self._bias = model.bias.double().numpy()  # (I,)
        self.widened = 0
        """How often the first margin was too narrow."""

    @property
    def precision(self) -> str:
        """Of the approximate scores: "bf16" or "fp32", whichever was faster here."""
        return self._catalogue.precision.name

    def rank(
        self, hidden: Hidden, ks: Sequence[int], excluded: Sequence[Sequence[int]] | None = None
    ) -> list[TopItems]:
        """The ``ks[b]`` best items for each state, without the excluded ones; ties by item index.

        hidden: (B, D) float16. Fewer items come back only where the catalogue has no more.
        """
        left_out = excluded if excluded is not None else [()] * len(ks)
        answers: list[TopItems] = []
        with torch.inference_mode():
            for at in range(0, len(ks), _ROWS):
                stop = at + _ROWS
                answers += self._rank_rows(hidden[at:stop], ks[at:stop], left_out[at:stop])
        return answers

    def _rank_rows(self, hidden: Hidden, ks: Sequence[int], excluded: Sequence[Sequence[int]]) -> list[TopItems]:
        count = len(self._embedding)
        states = torch.from_numpy(np.ascontiguousarray(hidden)).float()  # (B, D)
        bounds = self._catalogue.error_bound(states).numpy()
        scores = [(start, multiply(states)) for start, multiply in self._catalogue.tiles]
        needs = [min(k + len(set(out)), count) for k, out in zip(ks, excluded, strict=True)]
        groups: defaultdict[int, list[int]] = defaultdict(list)
        for row, need in enumerate(needs):
            groups[_with_margin(need, count)].append(row)
        found: dict[int, TopItems] = {}
        while groups:
            size, rows = groups.popitem()
            exact, floors = self._select(hidden, scores, rows, size)
            for row, ranked, floor in zip(rows, exact, floors, strict=True):
                need = needs[row]
                beyond = floor + abs(floor) * self._catalogue.precision.unit + bounds[row]
                if size < count and need and not ranked.scores[need - 1] > beyond:
                    self.widened += 1
                    groups[min(4 * size, count)].append(row)
                else:
                    found[row] = ranked
        return [_finish(found[row], k, out) for row, (k, out) in enumerate(zip(ks, excluded, strict=True))]

    def _select(
        self, hidden: Hidden, scores: list[tuple[int, torch.Tensor]], rows: list[int], size: int
    ) -> tuple[list[TopItems], list[float]]:
        """The ``size`` best by approximate score, in exact order; and the lowest approximate score among them."""
        values, indexes = [], []
        for start, tile in scores:
            chosen = tile if len(rows) == len(tile) else tile[rows]
            value, index = largest(chosen, min(size, tile.shape[1]))
            values.append(value)
            indexes.append(index + start)
        value, index = torch.cat(values, 1), torch.cat(indexes, 1)
        if value.shape[1] > size:
            value, at = value.topk(size, dim=1, sorted=False)
            index = index.gather(1, at)
        floors = value.amin(1).tolist() if size else [0.0] * len(rows)
        return self._rescore(hidden[rows].astype(np.float64), index.numpy()), floors

    def _rescore(self, hidden: np.ndarray, indexes: np.ndarray) -> list[TopItems]:
        """Exact scores of (R, n) items for (R, D) states, each row sorted.

        Products and then a sum along each row, never a matrix multiplication: numpy adds up a row in the same order
        whatever stands beside it.
        """
        ranked: list[TopItems] = []
        step = max(1, _RESCORE_ELEMENTS // max(1, indexes.shape[1] * hidden.shape[1]))
        for at in range(0, len(indexes), step):
            index = indexes[at : at + step]
            products = self._embedding[index] * hidden[at : at + step, None, :]  # (r, n, D) float64
            exact = products.sum(axis=2) + self._bias[index]
            order = np.lexsort((index, -exact), axis=1)
            index, exact = np.take_along_axis(index, order, 1), np.take_along_axis(exact, order, 1)
            ranked += [TopItems(i, s) for i, s in zip(index, exact, strict=True)]
        return ranked


def _with_margin(need: int, count: int) -> int:
    """Candidates to take at first, rounded up so that states with like needs share a selection."""
    wanted = need + need // 4 + 32
    return min(-(-wanted // 64) * 64, count)


def _finish(ranked: TopItems, k: int, excluded: Sequence[int]) -> TopItems:
    indexes, scores = ranked
    if excluded:
        keep = ~np.isin(indexes, np.fromiter(excluded, np.int64))
        indexes, scores = indexes[keep], scores[keep]
    return TopItems(indexes[:k], six_digits(scores[:k]))


def six_digits(values: np.ndarray) -> np.ndarray:
    """Rounded to six significant decimal digits: short in JSON, and all that single precision can tell apart."""
    magnitude = np.floor(np.log10(np.maximum(np.abs(values), 1e-12)))
    scale = 10.0 ** (5.0 - magnitude)
    return np.asarray(np.round(values * scale) / scale)


def largest(scores: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The ``size`` largest of each row of (R, W): values (R, size) float32 and columns, in no particular order.

    The row is folded upon itself a few times, keeping the larger of each pair. A value among the largest has a column
    among the largest of the folded row, or another from the same fold of no less value has taken its place; so the
    folds of the best columns hold the answer. Half the time of one selection over 50,000.
    """
    rows, width = scores.shape
    folds = round(math.log2(width / max(size, 1)) / 2) if width > 4 * max(size, 1) else 0
    column = width >> folds
    if folds < 1 or column < size:
        value, at = scores.float().topk(size, dim=1, sorted=False)
        return value, at
    folded = scores[:, : column << folds]
    for _ in range(folds):
        half = folded.shape[1] // 2
        folded = torch.maximum(folded[:, :half], folded[:, half:])
    best = folded.float().topk(size, dim=1, sorted=False).indices  # (R, size)
    stacked = torch.arange(1 << folds)[None, :, None] * column
    places = (best[:, None, :] + stacked).reshape(rows, -1)  # (R, size * 2^folds)
    rest = torch.arange(column << folds, width)
    places = torch.cat([places, rest.expand(rows, -1)], 1)
    value, at = scores.gather(1, places).float().topk(size, dim=1, sorted=False)
    return value, places.gather(1, at)
