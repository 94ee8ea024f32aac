"""Rows of items that a model knows, moved towards those who choose them now.

A row learnt from yesterday's sessions says who chose the item yesterday. Linear discriminant analysis says from the
states of those who chose it since, as for new items (see fold_in), what the row would be if they were all that is
known. Between the two stands the mean that a Gaussian prior gives: the trained row counts as K choosers,

    e = (K e_trained + n e_folded) / (K + n)

What K is depends on the data: on news a row of yesterday is worth ten choosers, in a shop whose catalogue hardly moves
more than all that an hour brings. So the latest choices decide: K is the one under which they were most likely among
the items in question, each with its own state left out of its item's sum; infinite, and nothing is changed, unless
another is better by more than chance gives. This says who is offered an item, not how often: its bias is the one at
which its probability, averaged over typical states, is what it was before.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from shared.core.progress import Folded
from shared.core.trending import Trending
from shared.model.fold_in import Bases, Basis, Candidate, merged
from shared.model.inference import InferenceModel
from shared.model.popularity import bias_now

WORTH = (10.0, 100.0, 1000.0)
"""K is one of these, or infinite."""

EVIDENCE = 10.0
"""By which the log likelihood of a finite K must be above that of an infinite one."""

LEAST_CHOICES = 20
"""Among fewer there is nothing to compare."""


class Choices(NamedTuple):
    """The latest ones. states: (S, D), right before them; rows: (S,) int64, of the items among those in question."""

    states: np.ndarray
    rows: np.ndarray


class Refined(NamedTuple):
    """embedding: (R, D) and bias: (R,), to rank by in place of the model's; worth: K."""

    embedding: np.ndarray
    bias: np.ndarray
    worth: float


class Table(NamedTuple):
    """The items in question. embedding: (R, D) and bias: (R,), as they are ranked now; sums: (R, D) and counts: (R,),
    of the states of those who chose each under this model, two at least."""

    embedding: np.ndarray
    bias: np.ndarray
    sums: np.ndarray
    counts: np.ndarray


def refined(basis: Basis, table: Table, choices: Choices) -> Refined | None:
    """Rows and biases under the best K; None: the trained ones stay."""
    if len(choices.rows) < LEAST_CHOICES:
        return None
    folded = basis.directions(table.sums / table.counts[:, None])  # (R, D)
    at = choices.rows
    others = table.counts[at] - 1.0
    alone = basis.directions((table.sums[at] - choices.states) / others[:, None])  # (S, D)
    shares = basis.shares(table.embedding, table.bias)
    best, likelihood = None, _log_likelihood(table.embedding, table.bias, table.embedding[at], choices) + EVIDENCE
    for worth in WORTH:
        embedding = _between(table.embedding, folded, table.counts, worth)
        bias = basis.bias(embedding, shares)
        own = _between(table.embedding[at], alone, others, worth)
        if (found := _log_likelihood(embedding, bias, own, choices)) > likelihood:
            best, likelihood = Refined(embedding, bias, worth), found
    return best


def _between(trained: np.ndarray, folded: np.ndarray, counts: np.ndarray, worth: float) -> np.ndarray:
    weight = (counts / (counts + worth))[:, None]
    return np.asarray(weight * folded + (1.0 - weight) * trained)


def _log_likelihood(embedding: np.ndarray, bias: np.ndarray, own: np.ndarray, choices: Choices) -> float:
    """Of the choices, among the items in question. own: (S, D), the chosen items' rows without this choice."""
    scores = choices.states @ embedding.T + bias  # (S, R)
    every = np.arange(len(scores))
    scores[every, choices.rows] = (choices.states * own).sum(1) + bias[choices.rows]
    top = scores.max(axis=1)
    return float((scores[every, choices.rows] - top - np.log(np.exp(scores - top[:, None]).sum(axis=1))).sum())


class Correction(NamedTuple):
    """What the stream of now tells of a model's items.

    extra: (I,) float32, added to the model's bias. indexes: (R,) int64, rising, of the items whose embeddings are
    replaced by ``embedding``: (R, D) float32. worth: the K of these; infinite where there are none.
    """

    extra: np.ndarray
    indexes: np.ndarray
    embedding: np.ndarray
    worth: float = math.inf

    @classmethod
    def of_bias(cls, extra: np.ndarray) -> Correction:
        """No row is replaced."""
        return cls(extra, np.zeros(0, np.int64), np.zeros((0, 0), np.float32))

    def replaced(self, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which of these items (n,) have a row here, as positions among them, and which row: (m,) each."""
        if not len(self.indexes):
            return self.indexes, self.indexes
        at = np.minimum(np.searchsorted(self.indexes, items), len(self.indexes) - 1)
        ours = np.flatnonzero(self.indexes[at] == items)
        return ours, at[ours]


class Seen(NamedTuple):
    """What consumers know of the stream under one model. typical: (state, the item that was chosen next) each, recent
    ones; choosers: sums of those who chose items that the model knows; recent: what was chosen lately."""

    typical: Sequence[tuple[bytes, str]]
    choosers: Iterable[Folded]
    recent: Trending


def correction_now(model: InferenceModel, bases: Bases, seen: Seen, keep: int, items: int) -> Correction | None:
    """None where nothing would change. keep: items counted in ``recent`` of each partition; items: rows replaced, at
    most, those with the largest shares."""
    extra = bias_now(model, [state for state, _ in seen.typical], seen.recent, keep)
    found = _refined_rows(model, bases, seen, extra, items) if items else None
    if found is None:
        return None if extra is None else Correction.of_bias(extra)
    indexes, rows = found
    corrected = np.zeros(len(model.items), np.float32) if extra is None else extra.copy()
    corrected[indexes] = rows.bias - model.bias.numpy()[indexes]
    return Correction(corrected, indexes, rows.embedding.astype(np.float32), rows.worth)


def _refined_rows(
    model: InferenceModel, bases: Bases, seen: Seen, extra: np.ndarray | None, items: int
) -> tuple[np.ndarray, Refined] | None:
    known = [c for c in merged(seen.choosers, 1) if c.states > 1 and c.item_id in model.index]
    if len(known) > items:
        known = sorted(known, key=lambda c: (-seen.recent.weight(c.item_id), c.item_id))[:items]
    known.sort(key=lambda c: model.index[c.item_id])
    indexes = np.array([model.index[c.item_id] for c in known], np.int64)
    embedding, bias = model.embedding.numpy()[indexes], model.bias.numpy()[indexes].astype(np.float64)
    typical = [(state, item) for state, item in seen.typical if len(state) == 2 * model.width]
    rows = refined_rows(bases, known, embedding, bias if extra is None else bias + extra[indexes], typical)
    return None if rows is None else (indexes, rows)


def refined_rows(
    bases: Bases,
    known: Sequence[Candidate],
    embedding: np.ndarray,
    bias: np.ndarray,
    typical: Sequence[tuple[bytes, str]],
) -> Refined | None:
    """Rows of the ``known`` items (R,), each chosen from two states or more; None: the trained ones stay. embedding:
    (R, D) and bias: (R,), as they are ranked now. typical: as in Seen, all of the model's width."""
    row = {c.item_id: at for at, c in enumerate(known)}
    choices = [(state, row[item]) for state, item in typical if item in row]
    if len(choices) < LEAST_CHOICES or (basis := bases.of(state for state, _ in typical)) is None:
        return None
    counts = np.array([c.states for c in known], np.float64)
    sums = np.stack([c.mean for c in known]) * counts[:, None]
    states = np.frombuffer(b"".join(state for state, _ in choices), np.float16).reshape(len(choices), -1)
    latest = Choices(states.astype(np.float64), np.array([at for _, at in choices]))
    return refined(basis, Table(embedding.astype(np.float64), bias.astype(np.float64), sums, counts), latest)
