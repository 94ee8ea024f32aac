"""The best items for hidden states: found among approximate scores, ordered by exact ones.

An item's score is its embedding's product with the hidden state plus its bias. All items are scored in low precision;
the best of them, with a margin, are scored again in double precision, and these scores decide. If the k-th exact
score is not above everything that an item outside the margin could have, the margin is widened for that state. So the
answer is that of an exact search over the whole catalogue, and does not depend on which states shared a batch.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from shared.model.coarse import Catalogue, Precision
from shared.model.inference import Hidden, InferenceModel
from shared.model.refine import Correction

_RESCORE_ITEMS = 1 << 14
"""Items scored exactly at once: 16 MB in double precision at width 128."""

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
        self._correction = Correction.of_bias(np.zeros(len(model.items), np.float32))
        self.number = 0
        """Of the correction, see ``corrected``; 0: none."""
        self.widened = 0
        """How often the first margin was too narrow."""

    def corrected(self, correction: Correction | None, number: int) -> Scorer:
        """As a scorer of the model, corrected in this way, or not at all. number: what tells the rankings by this
        correction from those by others."""
        if correction is None:
            correction = Correction.of_bias(np.zeros(len(self.model.items), np.float32))
        bias = self.model.bias + torch.from_numpy(correction.extra)
        places, rows = torch.from_numpy(correction.indexes), torch.from_numpy(correction.embedding)
        other = copy.copy(self)
        other._catalogue = self._catalogue.corrected(bias, places, rows)
        other._bias = bias.double().numpy()
        other._correction = correction
        other.number, other.widened = number, 0
        return other

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
        states = torch.from_numpy(hidden.astype(np.float32))  # (B, D)
        bounds = self._catalogue.error_bound(states).numpy()
        scores = [(start, multiply(states)) for start, multiply in self._catalogue.tiles]
        needs = [min(k + len(set(out)), count) for k, out in zip(ks, excluded, strict=True)]
        groups: defaultdict[int, list[int]] = defaultdict(list)
        for row, need in enumerate(needs):
            groups[_with_margin(need, count)].append(row)
        found: dict[int, TopItems] = {}
        while groups:
            size, rows = groups.popitem()
            for row, candidates in zip(rows, _candidates(scores, rows, size), strict=True):
                ranked = self._rescore(hidden[row].astype(np.float64), candidates.indexes)
                floor = candidates.floor
                beyond = floor + abs(floor) * self._catalogue.precision.unit + bounds[row]
                if size < count and needs[row] and not ranked.scores[needs[row] - 1] > beyond:
                    self.widened += 1
                    groups[min(4 * size, count)].append(row)
                else:
                    found[row] = ranked
        return [_finish(found[row], k, out) for row, (k, out) in enumerate(zip(ks, excluded, strict=True))]

    def _rescore(self, hidden: np.ndarray, indexes: np.ndarray) -> TopItems:
        """Exact scores of n items for one state (D,) float64, sorted.

        A product of two rows at a time, never a matrix multiplication: its sum has the same order whatever stands
        beside it.
        """
        indexes = np.sort(indexes)
        parts = [
            np.vecdot(self._rows(indexes[at : at + _RESCORE_ITEMS]), hidden)
            for at in range(0, max(1, len(indexes)), _RESCORE_ITEMS)
        ]
        exact = (np.concatenate(parts) if len(parts) > 1 else parts[0]) + self._bias.take(indexes)
        order = np.argsort(-exact, kind="stable")
        return TopItems(indexes[order], exact[order])

    def _rows(self, indexes: np.ndarray) -> np.ndarray:
        """(n, D) float64: embeddings of these items (n,)."""
        rows = self._embedding.take(indexes, axis=0).astype(np.float64)
        ours, at = self._correction.replaced(indexes)
        if len(ours):
            rows[ours] = self._correction.embedding[at]
        return rows


class Candidates(NamedTuple):
    """indexes (n,) int64 of all items that matter: no other has an approximate score above ``floor``."""

    indexes: np.ndarray
    values: np.ndarray
    floor: float


def _candidates(scores: list[tuple[int, torch.Tensor]], rows: list[int], size: int) -> list[Candidates]:
    """At least ``size`` items for each of the rows, from all tiles (first item, approximate scores)."""
    tiles = []
    for start, tile in scores:
        chosen = tile if len(rows) == len(tile) else tile[rows]
        tiles.append([c._replace(indexes=c.indexes + start) for c in largest(chosen, size)])
    if len(tiles) == 1:
        return tiles[0]
    merged = []
    for parts in zip(*tiles, strict=True):
        values = np.concatenate([c.values for c in parts])
        indexes = np.concatenate([c.indexes for c in parts])
        floor = float(np.partition(values, -size)[-size]) if 0 < size <= len(values) else -math.inf
        keep = values >= floor
        merged.append(Candidates(indexes[keep], values[keep], floor))
    return merged


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


def largest(scores: torch.Tensor, size: int) -> list[Candidates]:
    """At least ``size`` of the largest of each row of (R, W); all if there are no more.

    The row is folded upon itself a few times, keeping the larger of each pair. The best ``size`` columns of the folded
    row have a floor; what reaches it and stands outside them can only be equal to it. Of a row that spreads, little
    more than ``size`` values reach the floor. A fifth of the time that torch.topk takes on 50,000.
    """
    width = scores.shape[1]
    if size >= width:
        return [Candidates(np.arange(width), row, -math.inf) for row in scores.float().numpy()]
    folds = max(0, round(math.log2(width / max(size, 1)) / 2))
    while width >> folds <= size:
        folds -= 1
    column = width >> folds
    folded = scores[:, : column << folds]
    for _ in range(folds):
        half = folded.shape[1] // 2
        folded = torch.maximum(folded[:, :half], folded[:, half:])
    tops = folded.float().numpy()  # (R, column)
    best = np.argpartition(tops, column - size, axis=1)[:, column - size :]  # (R, size)
    floors = np.take_along_axis(tops, best, 1).min(axis=1, initial=math.inf)
    stacked = np.arange(1 << folds)[None, :, None] * column
    places = (best[:, None, :] + stacked).reshape(len(best), -1)  # (R, size * 2^folds)
    rest = np.broadcast_to(np.arange(column << folds, width), (len(best), width - (column << folds)))
    places = np.concatenate([places, rest], axis=1)
    values = scores.gather(1, torch.from_numpy(places)).float().numpy()
    found = []
    for place, value, floor in zip(places, values, floors, strict=True):
        keep = np.flatnonzero(value >= floor)
        found.append(Candidates(place[keep], value[keep], float(floor)))
    return found
