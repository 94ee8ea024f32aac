"""One GRU step per event, from a state that is stored as half floats.

The same events must give the same bits however they are split into batches, or a crash would show in a user's
state. Matrix multiplication does not promise that: its summation order depends on the batch. So a step is computed
in double precision, where such differences are about 1e-16, and rounded to half precision after each event, where
neighbours are 1e-4 apart: a difference survives the rounding about once in 1e12 steps.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from shared.core.errors import ModelDamaged
from shared.model.network import offers_repeats

_TILE = 512
"""Users advanced together: twice the speed of 4,096 at once, measured at width 128."""

Hidden = np.ndarray
"""(users, width) float16"""

Mark = tuple[int, int]
"""(row of a user, number of items taken)"""


class InferenceModel:
    """A published model, ready to advance states and to score.

    weights: ``item_embedding`` (I, D), ``item_bias`` (I,), ``gru.weight_ih_l0`` (3D, D), ``gru.weight_hh_l0`` (3D, D),
    ``gru.bias_ih_l0`` (3D,), ``gru.bias_hh_l0`` (3D,): float32, torch.nn.GRU's gate order. items: ids in index order.
    Raises ModelDamaged where names or shapes do not fit.
    """

    def __init__(
        self, version: str, fingerprint: int, items: Sequence[str], weights: Mapping[str, torch.Tensor]
    ) -> None:
        self.version = version
        self.fingerprint = fingerprint
        self.items = list(items)
        self.index = {item: i for i, item in enumerate(self.items)}
        try:
            self.embedding = weights["item_embedding"].float().contiguous()  # (I, D)
            self.bias = weights["item_bias"].float().contiguous()  # (I,)
            input_weights, hidden_weights = weights["gru.weight_ih_l0"], weights["gru.weight_hh_l0"]
            input_bias, hidden_bias = weights["gru.bias_ih_l0"], weights["gru.bias_hh_l0"]
        except KeyError as error:
            raise ModelDamaged(f"model {version} lacks the tensor {error}") from error
        self.repeats = offers_repeats(weights)
        self.width = int(self.embedding.shape[1])
        self._check_shapes(input_weights, hidden_weights, input_bias, hidden_bias)
        self._w_in = input_weights.double().T.contiguous()  # (D, 3D)
        self._w_hidden = hidden_weights.double().T.contiguous()  # (D, 3D)
        self._b_in = input_bias.double()
        self._b_hidden = hidden_bias.double()
        self._local = threading.local()

    def _check_shapes(self, *gru: torch.Tensor) -> None:
        count, width = self.embedding.shape
        expected = [(3 * width, width), (3 * width, width), (3 * width,), (3 * width,)]
        if count != len(self.items) or self.bias.shape != (count,) or [tuple(w.shape) for w in gru] != expected:
            raise ModelDamaged(
                f"model {self.version}: shapes of embedding {tuple(self.embedding.shape)}, bias "
                f"{tuple(self.bias.shape)}, GRU {[tuple(w.shape) for w in gru]} and {len(self.items)} items do not fit"
            )

    def start(self, users: int) -> Hidden:
        """The state before any event: zeros (users, width)."""
        return np.zeros((users, self.width), dtype=np.float16)

    def advance(self, hidden: Hidden, sequences: Sequence[Sequence[int]]) -> Hidden:
        """The states after each user's new items.

        hidden: (users, width) float16; sequences: for each user the item indexes in order, possibly none.
        All first items are one multiplication, then all second ones, over the users who have that many.
        """
        return self.advance_recording(hidden, sequences, ())[0]

    def advance_recording(
        self, hidden: Hidden, sequences: Sequence[Sequence[int]], marks: Sequence[Mark]
    ) -> tuple[Hidden, Hidden]:
        """As ``advance``, and the states at these marks, (len(marks), width) float16, in their order.

        A mark (user's row, step) is the state after the first ``step`` items of the row's sequence, at most all.
        """
        if len(sequences) <= _TILE:  # a tile's gates stay in the processor's cache
            return self._advance_tile(hidden, sequences, marks)
        recorded = np.empty((len(marks), self.width), dtype=np.float16)
        placed: dict[int, list[int]] = {}
        for at, (row, _) in enumerate(marks):
            placed.setdefault(row // _TILE, []).append(at)
        parts = []
        for tile, first in enumerate(range(0, len(sequences), _TILE)):
            ours = placed.get(tile, ())
            own = [(marks[at][0] - first, marks[at][1]) for at in ours]
            rows = slice(first, first + _TILE)
            after, states = self._advance_tile(hidden[rows], sequences[rows], own)
            parts.append(after)
            if ours:
                recorded[ours] = states
        return np.concatenate(parts), recorded

    def _advance_tile(
        self, hidden: Hidden, sequences: Sequence[Sequence[int]], marks: Sequence[Mark]
    ) -> tuple[Hidden, Hidden]:
        lengths = [len(s) for s in sequences]
        longest = max(lengths, default=0)
        if not longest:
            return hidden.copy(), hidden[[row for row, _ in marks]]
        order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
        state = torch.from_numpy(hidden[order].astype(np.float16)).double()  # (U, D), longest sequence first
        recorder = _Recorder(order, marks)
        active = len(order)
        with torch.inference_mode():
            for step in range(longest):
                recorder.take(step, state)
                while lengths[order[active - 1]] <= step:
                    active -= 1
                at = [sequences[user][step] for user in order[:active]]
                self._step(torch.tensor(at), state[:active])
            recorder.take(longest, state)
        result = np.empty_like(hidden, dtype=np.float16)
        result[order] = state.half().numpy()
        return result, recorder.states(self.width)

    def _workspace(self) -> _Workspace:
        """This thread's own."""
        space: _Workspace | None = getattr(self._local, "space", None)
        if space is None:
            space = self._local.space = _Workspace(self.width)
        return space

    def _step(self, items: torch.Tensor, hidden: torch.Tensor) -> None:
        """Take each user one item further, in place: items (U,) int64, hidden (U, D) float64 of half precision."""
        width, space = self.width, self._workspace()
        count = len(items)
        inputs, recurrent = space.inputs[:count], space.recurrent[:count]  # (U, 3D)
        torch.addmm(self._b_in, self.embedding[items].double(), self._w_in, out=inputs)
        torch.addmm(self._b_hidden, hidden, self._w_hidden, out=recurrent)
        gates = inputs[:, : 2 * width].add_(recurrent[:, : 2 * width]).sigmoid_()
        reset, update = gates[:, :width], gates[:, width:]
        candidate = inputs[:, 2 * width :].addcmul_(reset, recurrent[:, 2 * width :]).tanh_()
        hidden.sub_(candidate).mul_(update).add_(candidate)
        hidden.copy_(space.rounded[:count].copy_(hidden))

    def current(self, recent: Sequence[str]) -> int:
        """Index of the item that a ranking after these leaves out, the last one known; -1: it leaves out none."""
        if not self.repeats:
            for item in reversed(recent):
                if (found := self.index.get(item)) is not None:
                    return found
        return -1

    def known(self, items: Sequence[str]) -> list[int]:
        """Indexes of those items that the model has seen, in order."""
        index = self.index
        return [i for item in items if (i := index.get(item)) is not None]


class _Workspace:
    """Room for one tile. Memory of this size, taken and given back in each step, cost more than all the arithmetic."""

    def __init__(self, width: int) -> None:
        self.inputs = torch.empty(_TILE, 3 * width, dtype=torch.float64)
        self.recurrent = torch.empty(_TILE, 3 * width, dtype=torch.float64)
        self.rounded = torch.empty(_TILE, width, dtype=torch.float16)


class _Recorder:
    """Keeps the states at marks while a tile advances. ``order``: the user's row for each row of the state."""

    def __init__(self, order: Sequence[int], marks: Sequence[Mark]) -> None:
        self._count = len(marks)
        self._steps: dict[int, tuple[list[int], list[int]]] = {}
        self._taken: list[tuple[list[int], Hidden]] = []
        if not marks:
            return
        place = {user: at for at, user in enumerate(order)}
        for at, (row, step) in enumerate(marks):
            into, rows = self._steps.setdefault(step, ([], []))
            into.append(at)
            rows.append(place[row])

    def take(self, step: int, state: torch.Tensor) -> None:
        """state (U, D) float64 before this step. A row whose items have ended stays as it is, so its end is there."""
        if (wanted := self._steps.get(step)) is not None:
            into, rows = wanted
            self._taken.append((into, state[rows].half().numpy()))

    def states(self, width: int) -> Hidden:
        """(marks, width) float16."""
        result = np.empty((self._count, width), dtype=np.float16)
        for into, states in self._taken:
            result[into] = states
        return result
