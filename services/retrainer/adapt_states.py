"""The hidden states of all users during a replay, and what the model holds about everyone just before each event.

As in the consumer: a state belongs to the model that made it, and after a swap it is rebuilt from the user's last
items when the user is next met; events of items that the model does not know leave it as it is. Single precision and
no rounding between events: a comparison of policies needs no bits that survive a crash.
"""

from __future__ import annotations

import numpy as np
import torch

from services.retrainer.adapt_stream import Ints, Stream
from shared.model.network import Weights, check_weights, offers_repeats


class Live:
    """A model as it serves: ``embedding`` (I, D) and ``bias`` (I,) of the items that it knows, and its GRU."""

    def __init__(self, weights: Weights) -> None:
        self.items, self.width = check_weights(weights)
        self.repeats = offers_repeats(weights)
        self.weights = weights
        self.embedding, self.bias = weights["item_embedding"], weights["item_bias"]
        # What an item adds to the gates is the same each time: (I, 3D), a tenth of a second for 40,000 items.
        self._inputs = torch.addmm(weights["gru.bias_ih_l0"], self.embedding, weights["gru.weight_ih_l0"].T)
        self._recurrent = weights["gru.weight_hh_l0"].T.contiguous()
        self._recurrent_bias = weights["gru.bias_hh_l0"]

    def step(self, items: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """items (U,) int64, all known; hidden (U, D) -> (U, D), the states after them."""
        width = self.width
        inputs = self._inputs.index_select(0, items)  # (U, 3D)
        recurrent = torch.addmm(self._recurrent_bias, hidden, self._recurrent)  # (U, 3D)
        gates = torch.sigmoid(inputs[:, : 2 * width] + recurrent[:, : 2 * width])
        candidate = torch.tanh(inputs[:, 2 * width :] + gates[:, :width] * recurrent[:, 2 * width :])
        return torch.lerp(candidate, hidden, gates[:, width:])


class States:
    """(users, D) float32 hidden states with the number of the model that made each."""

    def __init__(self, stream: Stream, model: Live, recent: int) -> None:
        """recent: items that a state is rebuilt from."""
        self._stream, self._recent = stream, recent
        users = len(stream.first)
        self._hidden = torch.zeros(users, model.width)
        self._made_by = np.full(users, -1, np.int32)
        self._number = -1
        self.swap(model)

    def swap(self, model: Live) -> None:
        """From now on states are of this model."""
        self.model = model
        self._number += 1

    def advance(self, begin: int, end: int) -> torch.Tensor:
        """Apply the events [begin, end) in order. Returns (end - begin, D): the user's state before each of them."""
        users = self._stream.users[begin:end].astype(np.int64)
        self._rebuild(users, begin)
        known = self._stream.items[begin:end] < self.model.items
        items = torch.from_numpy(self._stream.items[begin:end].astype(np.int64))
        before = torch.empty(end - begin, self.model.width)
        for turn in _turns(users):
            hidden = self._hidden[torch.from_numpy(users[turn])]
            before[torch.from_numpy(turn)] = hidden
            moves = known[turn]
            if moves.any():
                at = torch.from_numpy(turn[moves])
                after = self.model.step(items[at], hidden[torch.from_numpy(np.flatnonzero(moves))])
                self._hidden[torch.from_numpy(users[turn[moves]])] = after
        return before

    def current(self, events: Ints) -> Ints:
        """(N,) int64: the item that the ranking before each of these events (N,) leaves out by itself, -1: none."""
        found = np.full(len(events), -1, np.int64)
        if not self.model.repeats and len(events):
            items, lengths = self._stream.history(events, self._recent)
            known = (items < self.model.items) & (np.arange(self._recent) < lengths[:, None])
            last = self._recent - 1 - np.argmax(known[:, ::-1], axis=1)
            rows = np.flatnonzero(known.any(axis=1))
            found[rows] = items[rows, last[rows]]
        return found

    def _rebuild(self, users: Ints, begin: int) -> None:
        """States of other models, of users that are met now, from the items before event ``begin``."""
        distinct, first = np.unique(users, return_index=True)
        stale = self._made_by[distinct] != self._number
        if not stale.any():
            return
        distinct, first = distinct[stale], first[stale]
        items, lengths = self._stream.history(begin + first, self._recent)
        known = (items < self.model.items) & (np.arange(self._recent) < lengths[:, None])
        counts = known.sum(1)
        order = np.argsort(-counts, kind="stable")
        packed = np.argsort(~known[order], axis=1, kind="stable")  # known ones to the left, in their order
        steps = torch.from_numpy(np.take_along_axis(items[order], packed, 1).astype(np.int64))
        hidden = torch.zeros(len(distinct), self.model.width)
        for step in range(int(counts.max(initial=0))):
            active = int(np.searchsorted(-counts[order], -step, side="left"))  # users with more than ``step`` items
            hidden[:active] = self.model.step(steps[:active, step], hidden[:active])
        self._hidden[torch.from_numpy(distinct[order])] = hidden
        self._made_by[distinct] = self._number


def _turns(users: Ints) -> list[Ints]:
    """Positions of each user's first event, then of each one's second, ...: a turn has no user twice."""
    order = np.argsort(users, kind="stable")
    fresh = np.concatenate([[True], np.diff(users[order]) != 0])
    starts = np.flatnonzero(fresh)
    number = np.arange(len(users)) - np.repeat(starts, np.diff(np.append(starts, len(users))))
    return [np.sort(order[number == turn]) for turn in range(int(number.max(initial=-1)) + 1)]
