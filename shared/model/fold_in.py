"""Rows for items that a model has never seen, made from the hidden states of those who chose them.

A model with tied weights gives an item the score e.h + b, and exp(score) stands for how likely a user in state h is to
choose it. Take the states of those who choose an item for normally distributed around a mean m, and all states around
a mean M, with one covariance C. Then Bayes' rule is linear in h (linear discriminant analysis; Fisher, 1936), and the
item's row is

    e = C^-1 (m - M) + g

where g is the slope of the log of the softmax' denominator, by linear regression: what all rows of the model have in
common, and what tells nothing of who chooses an item. As m comes from few states it is drawn towards M by ``PRIOR``
imagined choosers who are like everyone. The bias is then the one at which the softmax over the catalogue, on average
over typical states, gives the item the share of all actions that it has now. So nothing has to be trained, and new
items stand among old ones on the same scale.

What is typical is learnt along with the sums: a few recent states of users who did anything at all. A trial with
states of sessions that the model dreams up itself instead was worse than nothing for items that it knows: real states
lie elsewhere.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from shared.core.progress import Folded
from shared.model.inference import Hidden, InferenceModel

UNIT = 1 << 12
"""Sums count in steps of 1/4096: integers, so they are the same in whatever order and parts they are added."""

PRIOR = 4.0
"""Imagined choosers with the mean state."""

RIDGE = 0.3
"""Of the states' mean square, added to each variance: directions in which they hardly differ tell nothing."""

TYPICAL = 64
"""States kept to tell what is typical, in each partition: 16 KB at width 128."""
TYPICAL_EVERY_MS = 1000
"""From one of them to the next, by the time of the events, once there are so many: they span a minute and more."""

_AT_ONCE = 16
"""Rows of scores held at once: 3 MB for 50,000 items; others get their turn in between."""

_MOST = 1 << 18
"""Choosers counted in a sum; more say nothing new, and 2^18 * 4096 is still an int32."""

MEMORY = 500
"""Choosers of an item that the model knows: at twice as many, sum and number are halved, so what it is made of is the
last thousand or so."""


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

    def __init__(
        self, keep: int, half_life_s: float, memory: int = 0, weight: Callable[[str], float] | None = None
    ) -> None:
        """memory: choosers of an item after which earlier ones begin to fade; 0: never. weight: of an item, those with
        the least go first; None: as above."""
        self._keep = keep
        self._memory = memory
        self._weight = weight
        self._half_life_ms = half_life_s * 1000.0
        self._entries: dict[str, _Entry] = {}
        self._typical: deque[tuple[bytes, str]] = deque(maxlen=TYPICAL)
        self._typical_ms = 0
        self.fingerprint = 0
        """Of the model that made the states; 0: none yet."""

    def __len__(self) -> int:
        return len(self._entries)

    def begin(self, fingerprint: int) -> None:
        """From now on states of this model: those of another one are dropped, they mean nothing beside its own."""
        if fingerprint != self.fingerprint:
            self.fingerprint = fingerprint
            self._entries = {}
            self._typical.clear()
            self._typical_ms = 0

    def observe(self, hidden: Sequence[Hidden], ts: Sequence[int], item_ids: Sequence[str]) -> None:
        """States before any events, evenly sampled: hidden (D,) float16, time (ms) and item of each. Some are kept."""
        for state, at, item_id in zip(hidden, ts, item_ids, strict=True):
            due = len(self._typical) < TYPICAL or not 0 <= at - self._typical_ms < TYPICAL_EVERY_MS
            if due and state.any():
                self._typical.append((state.tobytes(), item_id))
                self._typical_ms = at

    @property
    def typical(self) -> list[tuple[bytes, str]]:
        """The states kept by ``observe``, (D,) float16 each, and the item chosen next."""
        return list(self._typical)

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
                if entry.states == 2 * self._memory:
                    entry.states //= 2
                    entry.total //= 2

    def _make_room(self) -> None:
        weight = self._weight or self._by_silence()
        ordered = sorted(self._entries, key=lambda item_id: (weight(item_id), item_id))
        for item_id in ordered[: max(1, self._keep // 4)]:
            del self._entries[item_id]

    def _by_silence(self) -> Callable[[str], float]:
        newest = max(entry.seen_ms for entry in self._entries.values())

        def weight(item_id: str) -> float:
            entry = self._entries[item_id]
            return entry.chosen * math.pow(2.0, -min((newest - entry.seen_ms) / self._half_life_ms, 1000.0))

        return weight

    def snapshot(self) -> list[Folded]:
        """All that is held; ``restore`` makes the same of it."""
        return [
            Folded(item_id, e.chosen, e.states, e.seen_ms, e.total.astype("<i4").tobytes())
            for item_id, e in self._entries.items()
        ]

    def restore(self, fingerprint: int, held: Iterable[Folded], typical: Iterable[tuple[bytes, str]] = ()) -> None:
        """Take over a snapshot of sums made with this model, and its typical states."""
        self.begin(fingerprint)
        self._typical.extend(typical)
        for folded in held if self._keep else ():
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
    """What typical states are. states: (S, D); log_norm: (S,), log of the softmax' denominator over the catalogue."""

    def __init__(self, states: np.ndarray, log_norm: np.ndarray) -> None:
        self._states = states.astype(np.float64)
        self._log_norm = log_norm.astype(np.float64)
        self.mean = self._states.mean(axis=0)
        covariance = np.cov(self._states, rowvar=False, bias=True).reshape(len(self.mean), len(self.mean))
        ridge = RIDGE * max(float(np.mean(self._states**2)), 1e-9)
        self._precision = np.linalg.inv(covariance + ridge * np.eye(len(self.mean)))
        apart = self._states - self.mean
        self._common = (apart.T @ (self._log_norm - self._log_norm.mean()) / len(apart)) @ self._precision  # (D,)

    def rows(self, candidates: Sequence[Candidate], shares: Sequence[float]) -> Rows:
        """Rows of the candidates. shares: of all actions now, those on each; above 0."""
        items = tuple(candidate.item_id for candidate in candidates)
        if not items:
            return Rows((), np.zeros((0, len(self.mean)), np.float32), np.zeros(0, np.float32))
        means = np.stack([c.mean for c in candidates])
        drawn = np.array([c.states / (c.states + PRIOR) for c in candidates])
        embedding = self.directions(self.mean + drawn[:, None] * (means - self.mean))  # (N, D)
        return Rows(items, embedding.astype(np.float32), self.bias(embedding, shares).astype(np.float32))

    def directions(self, means: np.ndarray) -> np.ndarray:
        """Rows of items from the mean states of those who chose them: (N, D) -> (N, D)."""
        return np.asarray((means - self.mean) @ self._precision + self._common)

    def shares(self, embedding: np.ndarray, bias: np.ndarray) -> np.ndarray:
        """(N,) above 0: each item's probability, averaged over typical states. embedding: (N, D); bias: (N,)."""
        found = np.exp(embedding @ self._states.T - self._log_norm + bias[:, None]).mean(axis=1)
        return np.asarray(np.maximum(found, 1e-30))

    def bias(self, embedding: np.ndarray, shares: Sequence[float] | np.ndarray) -> np.ndarray:
        """(N,) at which each item's probability, averaged over typical states, is its share. embedding: (N, D)."""
        logits = embedding @ self._states.T - self._log_norm  # (N, S)
        top = logits.max(axis=1)
        average = top + np.log(np.exp(logits - top[:, None]).mean(axis=1))
        return np.asarray(np.log(np.asarray(shares)) - average)


class Bases:
    """Makes the basis of one model anew as typical states come and go; only new ones are scored."""

    def __init__(self, model: InferenceModel) -> None:
        self._model = model
        self._norms: dict[bytes, float] = {}

    def of(self, typical: Iterable[bytes]) -> Basis | None:
        """From these states, (D,) float16 each; None where there are none."""
        width = self._model.width
        held = [state for state in typical if len(state) == 2 * width]
        if not held:
            return None
        states = np.frombuffer(b"".join(held), np.float16).reshape(-1, width)
        new = [row for row, state in enumerate(held) if state not in self._norms]
        known = {state: self._norms[state] for state in held if state in self._norms}
        self._norms = known | dict(zip([held[row] for row in new], log_norms(self._model, states[new]), strict=True))
        return Basis(states, np.array([self._norms[state] for state in held]))


def log_norms(model: InferenceModel, hidden: np.ndarray) -> list[float]:
    """Log of the sum over the catalogue of exp(score), for each state. hidden: (S, D)."""
    found: list[float] = []
    with torch.inference_mode():
        for at in range(0, len(hidden), _AT_ONCE):
            states = torch.from_numpy(hidden[at : at + _AT_ONCE].astype(np.float32))
            found += torch.addmm(model.bias, states, model.embedding.T).logsumexp(1).tolist()
    return found
