"""Approximate scores of the whole catalogue, with a bound on their error.

One matrix multiplication over all items is most of the work of a ranking. In bfloat16 it reads half the memory and
runs on the processor's matrix units where it has them; which way is faster is measured when a model is loaded.
The bound makes low precision safe: see scorer.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import linear

TILE_ITEMS = 1 << 18
"""Items scored at once: with 32 users in bfloat16 the scores take 16 MB."""

_PACK_ROWS = 8
"""Users for which the packed layout is chosen; it serves any number."""

_TRIAL_ITEMS = 16384
_TRIAL_ROUNDS = 3

Multiply = Callable[[torch.Tensor], torch.Tensor]
"""(B, D) float32 -> (B, tile) scores."""

WithBias = Callable[[torch.Tensor], Multiply]
"""A tile's embeddings, laid out once, that take a bias (tile,) of their type."""


@dataclass(frozen=True)
class Precision:
    """``unit``: relative spacing of the scores' type, twice their rounding error."""

    name: str
    dtype: torch.dtype
    unit: float


FP32 = Precision("fp32", torch.float32, 2.0**-23)
BF16 = Precision("bf16", torch.bfloat16, 2.0**-8)


class Catalogue:
    """Item embeddings (I, D) and biases (I,), cut into tiles and laid out for multiplication."""

    def __init__(self, embedding: torch.Tensor, bias: torch.Tensor, precision: Precision | None = None) -> None:
        self.precision = precision or fastest(embedding, bias)
        kept = embedding.to(self.precision.dtype)
        self._makers = [(at, _multiplier(kept[at : at + TILE_ITEMS])) for at in range(0, len(embedding), TILE_ITEMS)]
        self.tiles: list[tuple[int, Multiply]] = []
        self._put_bias(bias)
        self._largest_replaced = 0.0
        width = embedding.shape[1]
        # Each product of a row and a state is off by at most these norms times the state's (Cauchy-Schwarz).
        self._lost = self._norm = 0.0
        for at in range(0, len(embedding), _TRIAL_ITEMS):
            rounded = kept[at : at + _TRIAL_ITEMS]
            lost = embedding[at : at + _TRIAL_ITEMS].double() - rounded.double()
            self._lost = max(self._lost, _largest_norm(lost))
            self._norm = max(self._norm, _largest_norm(rounded.double()))
        self._summing = width * 2.0**-23

    def _put_bias(self, bias: torch.Tensor) -> None:
        kept = bias.to(self.precision.dtype)
        self.tiles = [(at, make(kept[at : at + TILE_ITEMS])) for at, make in self._makers]
        self._bias_lost = float((bias - kept.float()).abs().max()) if len(bias) else 0.0

    def corrected(self, bias: torch.Tensor, indexes: torch.Tensor, embedding: torch.Tensor) -> Catalogue:
        """The same embeddings, not laid out anew, with another bias (I,), and with these (R, D) in place of those of
        the items ``indexes`` (R,), rising. Their scores are computed in single precision."""
        other = copy.copy(self)
        other._put_bias(bias.index_fill(0, indexes, 0.0))  # those of replaced rows are not rounded
        other._largest_replaced = _largest_norm(embedding.double())
        if len(indexes):
            edges = torch.searchsorted(indexes, torch.tensor([at for at, _ in other.tiles] + [len(bias)])).tolist()
            for tile, (at, multiply) in enumerate(other.tiles):
                mine = slice(edges[tile], edges[tile + 1])
                if mine.start < mine.stop:
                    places = indexes[mine]
                    other.tiles[tile] = at, _replacing(multiply, places - at, embedding[mine], bias[places])
        return other

    def error_bound(self, hidden: torch.Tensor) -> torch.Tensor:
        """How far a score before its last rounding can be from the exact one.

        hidden: (B, D) float32 -> (B,) float64. The last rounding adds up to ``precision.unit`` of the score.
        """
        exact = hidden.double()
        norm = torch.linalg.vector_norm(exact, dim=1)
        lost = torch.linalg.vector_norm(exact - hidden.to(self.precision.dtype).double(), dim=1)
        largest = max(self._norm, self._largest_replaced)
        bound: torch.Tensor = norm * (self._lost + self._summing * largest) + lost * self._norm + self._bias_lost
        return bound


def _replacing(multiply: Multiply, places: torch.Tensor, rows: torch.Tensor, bias: torch.Tensor) -> Multiply:
    """places: (R,) within the tile; rows: (R, D) float32; bias: (R,) float32."""

    def replaced(hidden: torch.Tensor) -> torch.Tensor:
        scores = multiply(hidden)
        scores[:, places] = linear(hidden, rows, bias).to(scores.dtype)
        return scores

    return replaced


def _largest_norm(rows: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(rows, dim=1).max()) if len(rows) else 0.0


def _multiplier(items: torch.Tensor) -> WithBias:
    if items.dtype == torch.bfloat16:
        packed = _packed(items)
        if packed is not None:
            return packed

    def with_bias(bias: torch.Tensor) -> Multiply:
        def multiply(hidden: torch.Tensor) -> torch.Tensor:
            scores: torch.Tensor = linear(hidden.to(items.dtype), items, bias)
            return scores

        return multiply

    return with_bias


def _packed(items: torch.Tensor) -> WithBias | None:
    """oneDNN's own layout of the weights, as torch's compiler uses it; None where this torch has no such thing.

    Without it, the 13 MB of 50,000 items at width 128 are laid out anew for each multiplication: 0.9 ms, not 0.6.
    """
    try:
        weights = torch.ops.mkldnn._reorder_linear_weight(items, _PACK_ROWS)
        apply = torch.ops.mkldnn._linear_pointwise

        def with_bias(bias: torch.Tensor) -> Multiply:
            def multiply(hidden: torch.Tensor) -> torch.Tensor:
                scores: torch.Tensor = apply(hidden.bfloat16(), weights, bias, "none", [], "")
                return scores

            return multiply

        probe = torch.zeros(1, items.shape[1])
        if with_bias(items.new_zeros(len(items)))(probe).shape != (1, len(items)):
            return None
    except (AttributeError, RuntimeError):  # NotImplementedError is a RuntimeError
        return None
    return with_bias


def fastest(embedding: torch.Tensor, bias: torch.Tensor, rows: Sequence[int] = (1, 8)) -> Precision:
    """The precision that scores a part of this catalogue in less time on this processor, now."""
    part, part_bias = embedding[:_TRIAL_ITEMS], bias[:_TRIAL_ITEMS]
    taken: dict[str, float] = {}
    with torch.inference_mode():
        for precision in (FP32, BF16):
            multiply = _multiplier(part.to(precision.dtype))(part_bias.to(precision.dtype))
            taken[precision.name] = sum(_best_time(multiply, torch.zeros(r, embedding.shape[1])) for r in rows)
    return BF16 if taken["bf16"] < taken["fp32"] else FP32


def _best_time(multiply: Multiply, hidden: torch.Tensor) -> float:
    best = float("inf")
    for _ in range(_TRIAL_ROUNDS):
        start = time.perf_counter()
        multiply(hidden)
        best = min(best, time.perf_counter() - start)
    return best
