"""Training: real backpropagation through time over whole sessions, in windows, with the state carried between them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from shared.model.config import TrainConfig
from shared.model.dataset import Sessions, in_company, windows
from shared.model.dismissals import Ints
from shared.model.group import ALONE, Group
from shared.model.network import Network, Weights
from shared.model.repeats import never_repeats
from shared.model.update import Updates

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What torch's Adam keeps for each parameter."""
SLACK = 0.1
"""Share of the time budget by which the clock must be ahead of the work before it bends the learning rate."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where training is. ``loss`` is the mean of the epoch so far, nats per pair."""

    epoch: int
    epochs: int
    events: int
    total_events: int
    epoch_events: int
    seconds: float
    """Of this epoch, as epoch_events"""
    loss: float


@dataclass(slots=True)
class TrainerState:
    """All that training needs to go on: tensors, and numbers that JSON can hold."""

    tensors: dict[str, torch.Tensor]
    meta: dict[str, Any]


class Trainer:
    """Trains one network on one set of sessions. The result depends on config, sessions and start weights only.

    items: size of the catalogue; start: weights to begin with (see ``grow``), else random ones by the seed. group:
    processes that each have all of these arguments. Of every update each computes the sessions in its lanes, with the
    same negatives and dropout as one process alone; their gradients are added, so that only sums' last bits differ.
    """

    def __init__(
        self, config: TrainConfig, sessions: Sessions, items: int, start: Weights | None = None, group: Group = ALONE
    ) -> None:
        self.config = config = config.settled(sessions.pairs)
        self.group = group
        self.sessions = sessions
        self.epoch = 0
        generator = torch.Generator().manual_seed(config.seed)
        self.network = (
            Network.from_weights(start) if start is not None else Network(items, config.model.width, generator)
        )
        self.network.repeats = not never_repeats(sessions, config.repeats_below)
        if config.scale:
            self.network.for_cosines()
        self._updates = Updates(config, self.network, sessions, group, self._rate)
        self._gru, self._dense = self._updates.gru, self._updates.dense
        self._embedding, self._bias = self._updates.embedding, self._updates.bias
        self._longest = in_company(sessions, config.batch_events, config.truncate)
        self._shares = config.epoch_shares()
        pairs = np.maximum(sessions.lengths - 1, 0)
        seen = [self._seen(epoch) for epoch in range(config.epochs)]
        self._total = max(1, sum(int((pairs if chosen is None else pairs[chosen]).sum()) for chosen in seen))
        self._done = 0

    @property
    def spent(self) -> float:
        """Share of the time budget, the same in all processes of the group; at 1 training has stopped, if mid-epoch."""
        return self._updates.spent

    def run(
        self, on_progress: Callable[[Progress], None] | None = None, spent: Callable[[], float] | None = None
    ) -> Progress:
        """One epoch more, or what there is time for. Returns its last progress.

        spent: share of the time budget that is gone. Where time is short the learning rate falls with it, and so is
        low when the budget ends.
        """
        began = time.monotonic()
        config = self.config
        rng = np.random.default_rng([config.seed, self.epoch, 1])
        dropout = np.random.Generator(np.random.SFC64([config.seed, self.epoch, 2]))
        hidden: torch.Tensor | None = None
        loss_sum, events = 0.0, 0
        progress = Progress(self.epoch + 1, config.epochs, 0, self._total, 0, 0.0, math.nan)
        seed, chosen = (config.seed, self.epoch), self._seen(self.epoch)
        stream = windows(
            self.sessions, config.batch_events, config.truncate, config.pool_batches, seed, chosen, self._longest
        )
        for window in stream:
            lanes = len(range(self.group.rank, window.inputs.shape[1], self.group.size))
            carried = None if window.fresh or hidden is None else hidden[:, :lanes]
            now = spent() if spent and not self.group.rank else 0.0
            hidden, loss, count = self._updates.one(window, carried, rng, dropout, now)
            loss_sum += loss * count
            events += count
            self._done += count
            progress = Progress(
                self.epoch + 1,
                config.epochs,
                self._done,
                self._total,
                events,
                time.monotonic() - began,
                loss_sum / events,
            )
            if on_progress:
                on_progress(progress)
            if self.spent >= 1:
                return progress
        self.epoch += 1
        return progress

    def _seen(self, epoch: int) -> Ints | None:
        """Positions of the sessions that this epoch learns; None: all."""
        share = self._shares[epoch]
        return None if share == 1 else self.sessions.newest(share)

    def state(self) -> TrainerState:
        """A copy of everything that the next epoch depends on."""
        tensors = {**self.network.weights()}
        for name, table in (("embedding", self._embedding), ("bias", self._bias)):
            tensors.update({f"adam.{name}.{key}": value.clone() for key, value in table.state().items()})
        for number, parameter in enumerate(self._gru):
            moments = self._dense.state[parameter]
            tensors.update({f"adam.gru.{number}.{key}": moments[key].clone() for key in _MOMENTS if key in moments})
        return TrainerState(tensors, {"epoch": self.epoch, "done": self._done})

    def restore(self, state: TrainerState) -> None:
        """Go on from ``state``: the rest of training gives the same bits as if it had never stopped."""
        tensors = state.tensors
        self.epoch, self._done = int(state.meta["epoch"]), int(state.meta["done"])
        self.network.load(tensors)
        for name, table in (("embedding", self._embedding), ("bias", self._bias)):
            table.load({key: tensors[f"adam.{name}.{key}"] for key in table.state()})
        for number, parameter in enumerate(self._gru):
            if f"adam.gru.{number}.step" in tensors:
                self._dense.state[parameter] = {key: tensors[f"adam.gru.{number}.{key}"].clone() for key in _MOMENTS}

    def _rate(self, spent: float) -> float:
        """The learning rate now: a short rise, then a straight fall. spent: share of the time budget."""
        config = self.config
        share = min(1.0, max(self._done / self._total, (spent - SLACK) / (1 - SLACK)))
        rise = min(1.0, (share + 1e-3) / config.warmup) if config.warmup else 1.0
        return config.learning_rate * rise * (1 - (1 - config.final_rate) * share)
