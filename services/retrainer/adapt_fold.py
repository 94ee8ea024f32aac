"""Items newer than the last training folded into the ranking, and known ones corrected by who chooses them now.

The mathematics is that of the services (shared/model/fold_in.py); here all users are in one place, so the sums are
plain arrays over the log's item numbers.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import torch

from services.retrainer.adapt_score import Catalogue
from services.retrainer.adapt_states import Live
from services.retrainer.adapt_stream import Ints, Stream
from shared.model.fold_in import MEMORY, TYPICAL, TYPICAL_EVERY_MS, Bases, Candidate, FoldIn, merged
from shared.model.inference import InferenceModel
from shared.model.popularity import STATES, log_ratios, shares_of, spread
from shared.model.refine import refined_rows

CORRECT_EVERY_MS = 240_000
"""Of the log, from one bias of known items to the next. The services do it every ten seconds."""
_RESCALE = 500.0
"""Half-lives after which decayed counts are brought down again: 2^500 is far from overflow, and so is its sum."""


class Shares:
    """Of all actions now, those on each item: counts that halve after ``half_life_ms``."""

    def __init__(self, items: int, half_life_ms: float) -> None:
        self._half_life_ms = half_life_ms
        self._weights = np.zeros(items)
        self._since: int | None = None
        self._newest = 0

    def add(self, items: Ints, ts: Ints) -> None:
        """items (N,), ts (N,) in ms, rising."""
        if self._since is None:
            self._since = int(ts[0])
        self._newest = max(self._newest, int(ts[-1]))
        ages = (ts - self._since) / self._half_life_ms
        if ages[-1] > _RESCALE:
            self._weights *= 2.0 ** -min(float(ages[-1]), 1000.0)
            self._since, ages = int(ts[-1]), (ts - ts[-1]) / self._half_life_ms
        np.add.at(self._weights, items, np.exp2(np.maximum(ages, -1000.0)))

    def of(self, items: Ints) -> Ints:
        """(N,) float64, above 0 for items that were added in the last thousand half-lives."""
        found: Ints = self._weights[items] / self._weights.sum()
        return found

    def weight(self, item: int) -> float:
        """What an item weighs beside others."""
        return float(self._weights[item])

    def counts(self, items: int) -> tuple[Ints, float]:
        """Of the first so many items and of all: choices, each counted half after the half-life."""
        if self._since is None:
            return self._weights[:items], 0.0
        unit = 2.0 ** ((self._newest - self._since) / self._half_life_ms)
        return self._weights[:items] / unit, float(self._weights.sum()) / unit


class FoldedItems:
    """The rows to rank at a time: the model's own, corrected by what is popular now and who chooses it, and, above its
    items, those folded in."""

    def __init__(
        self, stream: Stream, half_life_s: float, minimum: int, keep: int, correct: bool = True, refine: int = 0
    ) -> None:
        """half_life_s: of what is popular now; minimum: choices after which an item is ranked; keep: items at once,
        those with the largest share; correct: whether known items are corrected; refine: of how many of them the
        rows."""
        self._stream, self._minimum, self._keep, self._correct = stream, minimum, keep, correct
        self._refine = refine if correct else 0
        items = int(stream.seen[-1])
        self.shares = Shares(items, half_life_s * 1000.0)
        self._chosen = np.zeros(items, np.int64)
        self._states = np.zeros(items, np.int64)

    def swap(self, model: Live) -> None:
        """Begin anew: sums are of one model's states."""
        items = len(self._chosen)
        self._model, self._inference = model, _inference(model)
        self._bases = Bases(self._inference)
        self._corrected_ms = 0
        self._typical: deque[tuple[bytes, str]] = deque(maxlen=4 * TYPICAL)  # as of four partitions
        self._typical_ms = 0
        self._total = np.zeros((items, model.width))
        self._chosen[:] = 0
        self._states[:] = 0
        self._choosers = FoldIn(self._refine, 1.0, MEMORY, lambda item: self.shares.weight(int(item)))
        self._embedding = torch.zeros(items, model.width)
        self._embedding[: model.items] = model.embedding
        self._bias = torch.full((items,), -torch.inf)
        self._bias[: model.items] = model.bias

    def observe(self, begin: int, end: int, before: torch.Tensor) -> None:
        """Count the events [begin, end). before (end - begin, D): the states that chose."""
        items = self._stream.items[begin:end]
        self.shares.add(items, self._stream.ts[begin:end])
        self._keep_typical(begin, end, before)
        states = before.numpy()
        known = np.any(states != 0, axis=1)  # a user's first action tells nothing of who chooses this
        old = known & (items < self._model.items)
        times = self._stream.ts[begin:end][old].tolist()
        self._choosers.add([str(item) for item in items[old]], states[old].astype(np.float16), times)
        new = items >= self._model.items
        items, states, known = items[new], states[new], known[new]
        np.add.at(self._chosen, items, 1)
        np.add.at(self._states, items[known], 1)
        np.add.at(self._total, items[known], states[known])

    def _keep_typical(self, begin: int, end: int, before: torch.Tensor) -> None:
        """A few of the states before any events, four in a second of the log at most."""
        for at in range(begin, end):
            ts = int(self._stream.ts[at])
            if ts - self._typical_ms >= TYPICAL_EVERY_MS // 4 and (state := before[at - begin]).any():
                self._typical.append((state.half().numpy().tobytes(), str(self._stream.items[at])))
                self._typical_ms = ts

    def catalogue(self, seen: int, now: int) -> Catalogue:
        """What is ranked now (ms), given that ``seen`` items have appeared."""
        known = self._model.items
        if self._correct and self._typical and now - self._corrected_ms >= CORRECT_EVERY_MS:
            self._corrected_ms = now
            self._correct_known(known)
        self._bias[known:seen] = -torch.inf
        ready = known + np.flatnonzero(self._chosen[known:seen] >= self._minimum)
        if len(ready) > self._keep:
            ready = np.sort(ready[np.argsort(-self.shares.of(ready), kind="stable")[: self._keep]])
        if len(ready):
            self._fill(ready)
        return Catalogue(self._embedding[:seen], self._bias[:seen], known)

    def _correct_known(self, known: int) -> None:
        chosen, total = self.shares.counts(known)
        states = spread([state for state, _ in self._typical], STATES)
        ratios = log_ratios(chosen, total * shares_of(self._inference, states))
        self._bias[:known] = self._model.bias + torch.from_numpy(ratios.astype(np.float32))
        self._embedding[:known] = self._model.embedding
        held = sorted(merged(self._choosers.snapshot(), 2), key=lambda c: int(c.item_id))
        at = torch.tensor([int(c.item_id) for c in held], dtype=torch.int64)
        rows = refined_rows(self._bases, held, self._embedding[at].numpy(), self._bias[at].numpy(), list(self._typical))
        if rows is not None:
            self._embedding[at] = torch.from_numpy(rows.embedding.astype(np.float32))
            self._bias[at] = torch.from_numpy(rows.bias.astype(np.float32))

    def _fill(self, ready: Ints) -> None:
        """Rows for the items ``ready``."""
        counts = self._states[ready]
        means = self._total[ready] / np.maximum(counts, 1)[:, None]
        candidates = [
            Candidate(str(item), int(chosen), int(count), mean)
            for item, chosen, count, mean in zip(ready, self._chosen[ready], counts, means, strict=True)
        ]
        basis = self._bases.of(state for state, _ in self._typical)
        if basis is None:
            return
        rows = basis.rows(candidates, self.shares.of(ready).tolist())
        at = torch.from_numpy(ready.astype(np.int64))
        self._embedding[at] = torch.from_numpy(rows.embedding)
        self._bias[at] = torch.from_numpy(rows.bias)


def _inference(model: Live) -> InferenceModel:
    return InferenceModel("adapt", 0, [str(number) for number in range(model.items)], model.weights)
