"""Rows for items that a model has never seen, made from the hidden states of those who chose them.

A model with tied weights gives an item the score e.h + b, and exp(score) stands for how likely a user in state h is to
choose it. Take the states of those who choose an item for normally distributed around a mean m, and all states around
a mean M, with one covariance C. Then Bayes' rule is linear in h, and the item's row is

    e = C^-1 (m - M)

(linear discriminant analysis; Fisher, 1936). As m comes from few states it is drawn towards M by ``PRIOR`` imagined
choosers who are like everyone. The bias is then the one at which the softmax over the catalogue, on average over
typical states, gives the item the share of all actions that it has now. So nothing has to be trained, and new items
stand among old ones on the same scale.

What is typical is asked of the model: states of sessions that it dreams up itself. So every process that holds the
model makes the same rows from the same sums.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from shared.core.progress import Folded
from shared.model.inference import Hidden, InferenceModel

UNIT = 1 << 12
"""Sums count in steps of 1/4096: integers, so they are the same in whatever order and parts they are added."""

PRIOR = 4.0
"""Imagined choosers with the mean state; see CHANGELOG for how it was chosen."""

RIDGE = 0.1
"""Share of the mean variance added to each: directions in which typical states hardly differ tell nothing."""

DREAMS = 256
"""Sessions dreamt up to learn what states are typical."""
DREAM_STEPS = 4
_DREAMT_AT_ONCE = 16
"""Rows of scores held at once: 3 MB for 50,000 items; others get their turn in between."""

_MOST = 1 << 18
"""Choosers counted in a sum; more say nothing new, and 2^18 * 4096 is still an int32."""


class _Entry:
    __slots__ = ("chosen", "seen_ms", "states", "total")

    def __init__(self, width: int) -> None:
        self.chosen = self.states = self.seen_ms = 0
        self.total = np.zeros(width, np.int32)


class FoldIn:
    """Collects the states of those who choose items unknown to one model; bounded.

    The outcome depends on the events alone, in their order, not on how they were split into batches or how often the
    collection was stored and read back in between. ``keep``: items; when there are more, a quarter goes, those first
    that were chosen least and longest ago (a choice counts half after ``half_life_s`` of silence).
    """

    def __init__(self, keep: int, half_life_s: float) -> None:
        self._keep = keep
        self._half_life_ms = half_life_s * 1000.0
        self._entries: dict[str, _Entry] = {}
        self.fingerprint = 0
        """Of the model that made the states; 0: none yet."""

    def __len__(self) -> int:
        return len(self._entries)

    def begin(self, fingerprint: int) -> None:
        """From now on states of this model: those of another one are dropped, they mean nothing beside its own."""
        if fingerprint != self.fingerprint:
            self.fingerprint = fingerprint
            self._entries = {}

    def add(self, item_ids: Sequence[str], hidden: Hidden, ts: Sequence[int]) -> None:
        """Count events in order. hidden: (n, D) float16, the states before; zeros for users without one. ts: ms."""
        if not self._keep or not len(item_ids):
            return
        steps = np.rint(hidden.astype(np.float32) * UNIT).astype(np.int32)  # (n, D)
        known = np.any(steps, axis=1).tolist()
        for row, (item_id, at) in enumerate(zip(item_ids, ts, strict=True)):
            entry = self._entries.get(item_id)
            if entry is None:
                if len(self._entries) >= self._keep:
                    self._make_room()
                entry = self._entries[item_id] = _Entry(steps.shape[1])
            entry.chosen += 1
            entry.seen_ms = max(entry.seen_ms, at)
            if known[row] and entry.states < _MOST:
                entry.states += 1
                entry.total += steps[row]

    def _make_room(self) -> None:
        newest = max(entry.seen_ms for entry in self._entries.values())

        def weight(pair: tuple[str, _Entry]) -> tuple[float, str]:
            age = (newest - pair[1].seen_ms) / self._half_life_ms
            return pair[1].chosen * 2.0 ** -min(age, 1000.0), pair[0]

        ordered = sorted(self._entries.items(), key=weight)
        for item_id, _ in ordered[: max(1, self._keep // 4)]:
            del self._entries[item_id]

    def snapshot(self) -> list[Folded]:
        """All that is held; ``restore`` makes the same of it."""
        return [
            Folded(item_id, e.chosen, e.states, e.seen_ms, e.total.astype("<i4").tobytes())
            for item_id, e in self._entries.items()
        ]

    def restore(self, fingerprint: int, held: Iterable[Folded]) -> None:
        """Take over a snapshot of sums made with this model."""
        self.begin(fingerprint)
        for folded in held:
            total = _sums(folded)
            entry = self._entries[folded.item_id] = _Entry(len(total))
            entry.chosen, entry.states, entry.seen_ms = folded.chosen, folded.states, folded.seen_ms
            entry.total = total.astype(np.int32)


class Candidate(NamedTuple):
    """A new item over all partitions. mean: (D,) float64, of the ``states`` choosers' hidden states."""

    item_id: str
    chosen: int
    states: int
    mean: np.ndarray


def merged(parts: Iterable[Folded], minimum: int) -> list[Candidate]:
    """Items chosen ``minimum`` times or more over all parts (partitions, all of one model), by item id."""
    sums: dict[str, tuple[int, int, np.ndarray]] = {}
    for folded in parts:
        chosen, states, total = sums.get(folded.item_id, (0, 0, np.zeros(1, np.int64)))
        sums[folded.item_id] = chosen + folded.chosen, states + folded.states, total + _sums(folded)
    return [
        Candidate(item_id, chosen, states, total / (UNIT * max(1, states)))
        for item_id, (chosen, states, total) in sorted(sums.items())
        if chosen >= minimum
    ]


def _sums(folded: Folded) -> np.ndarray:
    """(D,) int64."""
    return np.frombuffer(folded.total, "<i4").astype(np.int64)


class Rows(NamedTuple):
    """Rows to rank beside a model's own: embedding (N, D) float32 and bias (N,) float32 of ``items``."""

    items: tuple[str, ...]
    embedding: np.ndarray
    bias: np.ndarray


class Basis:
    """What typical states are for one model: made once, when it is loaded.

    states: (S, D) float32; log_norm: (S,) float64, log of the softmax' denominator over the catalogue.
    """

    def __init__(self, states: np.ndarray, log_norm: np.ndarray) -> None:
        self._states = states.astype(np.float64)
        self._log_norm = log_norm.astype(np.float64)
        self.mean = self._states.mean(axis=0)
        covariance = np.cov(self._states, rowvar=False, bias=True).reshape(len(self.mean), len(self.mean))
        ridge = RIDGE * max(float(np.trace(covariance)) / len(self.mean), 1e-9)
        self._precision = np.linalg.inv(covariance + ridge * np.eye(len(self.mean)))

    @classmethod
    def of(cls, model: InferenceModel, seed: int = 1) -> Basis:
        """From the states of sessions that the model dreams up: each next item is drawn from what it predicts."""
        hidden = dream(model, DREAMS, DREAM_STEPS, seed)
        return cls(hidden, log_norms(model, hidden))

    def rows(self, candidates: Sequence[Candidate], shares: Sequence[float]) -> Rows:
        """Rows of the candidates. shares: of all actions now, those on each; above 0."""
        items = tuple(candidate.item_id for candidate in candidates)
        if not items:
            return Rows((), np.zeros((0, len(self.mean)), np.float32), np.zeros(0, np.float32))
        apart = np.stack([(c.mean - self.mean) * (c.states / (c.states + PRIOR)) for c in candidates])  # (N, D)
        embedding = apart @ self._precision
        return Rows(items, embedding.astype(np.float32), self.bias(embedding, shares).astype(np.float32))

    def bias(self, embedding: np.ndarray, shares: Sequence[float]) -> np.ndarray:
        """(N,) at which each item's probability, averaged over typical states, is its share. embedding: (N, D)."""
        logits = embedding @ self._states.T - self._log_norm  # (N, S)
        top = logits.max(axis=1)
        average = top + np.log(np.exp(logits - top[:, None]).mean(axis=1))
        return np.asarray(np.log(np.asarray(shares)) - average)


def dream(model: InferenceModel, sessions: int, steps: int, seed: int) -> np.ndarray:
    """(sessions * steps, D) float32: states after 1 to ``steps`` items, each drawn from the model's prediction."""
    rng = np.random.default_rng(seed)
    hidden = model.start(sessions)
    found = []
    for _ in range(steps):
        drawn: list[int] = []
        for at in range(0, sessions, _DREAMT_AT_ONCE):
            part = hidden[at : at + _DREAMT_AT_ONCE]
            reached = _scores(model, part).softmax(1).cumsum(1).numpy()  # (R, I)
            marks = rng.random(len(part)) * reached[:, -1]
            drawn += [
                min(int(np.searchsorted(row, mark)), len(row) - 1) for row, mark in zip(reached, marks, strict=True)
            ]
        hidden = model.advance(hidden, [[item] for item in drawn])
        found.append(hidden.astype(np.float32))
    return np.concatenate(found)


def log_norms(model: InferenceModel, hidden: np.ndarray) -> np.ndarray:
    """(S,) log of the sum over the catalogue of exp(score). hidden: (S, D)."""
    parts = [
        torch.logsumexp(_scores(model, hidden[at : at + _DREAMT_AT_ONCE]), 1).numpy()
        for at in range(0, len(hidden), _DREAMT_AT_ONCE)
    ]
    return np.concatenate(parts)


def _scores(model: InferenceModel, hidden: np.ndarray) -> torch.Tensor:
    with torch.inference_mode():
        states = torch.from_numpy(hidden.astype(np.float32))
        return torch.addmm(model.bias, states, model.embedding.T)
