"""Where in the full ranking is the item that was chosen? With the folded-in items and without, in one pass."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch

from services.retrainer.adapt_stream import Ints

TOP = 20
_TILE = 1024
"""Items scored at once: with so many states a megabyte, which stays in the processor's cache."""
_ROWS = 256


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The rows that are ranked: those that the model knows first, then those of items that came later. A row that may
    not be ranked yet has the bias -inf."""

    embedding: torch.Tensor
    """(I, D)"""
    bias: torch.Tensor
    """(I,)"""
    known: int


@dataclass(frozen=True, slots=True)
class Ranks:
    """(N,) int64 ranks from 1, ties against the chosen item; 0: not in the top 20."""

    folded: Ints
    plain: Ints
    """Among the items that the model knows only"""


def ranks(
    catalogue: Catalogue, states: torch.Tensor, targets: torch.Tensor, left_out: torch.Tensor | None = None
) -> Ranks:
    """states (N, D), targets (N,) int64; a target beyond the catalogue's rows has no rank. left_out (N,) int64: a known
    item that the ranking does not hold, -1: it holds all."""
    rows = len(catalogue.bias)
    present = targets < rows
    places = torch.where(present, targets, 0)
    own = (states * catalogue.embedding[places]).sum(1) + catalogue.bias[places]
    # The chosen item's own score, summed in another order elsewhere, differs in the last bits: it must not count as
    # one above itself, so all are compared with a score that is lower by more than that, and ties count against it.
    floor = own - 1e-5 * own.abs().clamp(min=1.0)
    above = _not_below(catalogue, states, floor)  # (2, N): of the known, of all
    ranked = present & torch.isfinite(own)
    if left_out is not None:
        at = left_out.clamp(min=0)
        scores = (states * catalogue.embedding[at]).sum(1) + catalogue.bias[at]
        above = (above - ((left_out >= 0) & (scores >= floor)).long()).clamp(min=1)
        ranked &= left_out != targets
    plain = torch.where(ranked & (targets < catalogue.known), above[0], 0)
    folded = torch.where(ranked, above[1], 0)
    return Ranks(_top(folded).numpy(), _top(plain).numpy())


def _top(rank: torch.Tensor) -> torch.Tensor:
    return torch.where(rank <= TOP, rank, 0)


def _not_below(catalogue: Catalogue, states: torch.Tensor, floor: torch.Tensor) -> torch.Tensor:
    """(2, N) int64: how many of the known items, and of all, have at least the score ``floor`` (N,)."""
    count, known = len(catalogue.bias), catalogue.known
    edges = [*range(0, known, _TILE), *range(known, count, _TILE), count]
    found = torch.zeros(2, len(states), dtype=torch.int64)
    for at in range(0, len(states), _ROWS):
        part, least = states[at : at + _ROWS], floor[at : at + _ROWS, None]
        for start, stop in pairwise(edges):
            scores = torch.addmm(catalogue.bias[start:stop], part, catalogue.embedding[start:stop].T)
            tally = (scores >= least).sum(1)
            found[1, at : at + _ROWS] += tally
            if start < known:
                found[0, at : at + _ROWS] += tally
    return found
