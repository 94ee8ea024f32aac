"""Training: real backpropagation through time over whole sessions, in windows, with the state carried between them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from shared.model.config import TrainConfig
from shared.model.dataset import Sessions, Window, windows
from shared.model.loss import bf16_is_faster, softmax_loss
from shared.model.network import Network, Weights
from shared.model.optimizer import RowAdam
from shared.model.sample import Candidates, NegativeSampler, all_items

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What torch's Adam keeps for each parameter."""


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

    items: size of the catalogue; start: weights to begin with (see ``grow``), else random ones by the seed.
    """

    def __init__(self, config: TrainConfig, sessions: Sessions, items: int, start: Weights | None = None) -> None:
        self.config = config = config.settled(sessions.pairs)
        self.sessions = sessions
        self.epoch = 0
        generator = torch.Generator().manual_seed(config.seed)
        self.network = (
            Network.from_weights(start) if start is not None else Network(items, config.model.width, generator)
        )
        self._gru = list(self.network.gru.parameters())
        self._dense = torch.optim.Adam(self._gru, lr=config.learning_rate)
        self._embedding = RowAdam(self.network.embedding)
        self._bias = RowAdam(self.network.bias)
        targets = np.delete(sessions.items, sessions.starts[:-1])  # every event but the first of each session
        self._sampler = NegativeSampler(np.bincount(targets, minlength=items), config.popularity_power)
        self._full = config.negatives == 0 or items <= 2 * config.negatives
        self._bf16 = config.matmul == "bf16" or (config.matmul == "auto" and bf16_is_faster())
        self._place = np.full(items, -1, np.int64)  # scratch: item -> row among those of one update
        self._total = max(1, sessions.pairs * config.epochs)
        self._done = 0

    def run(self, on_progress: Callable[[Progress], None] | None = None) -> Progress:
        """One epoch more. Returns its last progress."""
        began = time.monotonic()
        config = self.config
        rng = np.random.default_rng([config.seed, self.epoch, 1])
        dropout = np.random.Generator(np.random.SFC64([config.seed, self.epoch, 2]))
        hidden: torch.Tensor | None = None
        loss_sum, events = 0.0, 0
        progress = Progress(self.epoch + 1, config.epochs, 0, self._total, 0, 0.0, math.nan)
        stream = windows(
            self.sessions, config.batch_events, config.truncate, config.pool_batches, (config.seed, self.epoch)
        )
        for window in stream:
            carried = None if window.fresh or hidden is None else hidden[:, : window.inputs.shape[1]]
            hidden, loss, count = self._update(window, carried, rng, dropout)
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
        self.epoch += 1
        return progress

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

    def _rate(self) -> float:
        """The learning rate now: a short rise, then a straight fall."""
        config = self.config
        share = self._done / self._total
        rise = min(1.0, (share + 1e-3) / config.warmup) if config.warmup else 1.0
        return config.learning_rate * rise * (1 - (1 - config.final_rate) * share)

    def _rows(self, inputs: np.ndarray, among: Candidates) -> tuple[np.ndarray, np.ndarray]:
        """(table rows of this update: the candidates, then inputs that are none; (N,) place of each input in them)."""
        place = self._place
        place[among.items] = np.arange(len(among.items))
        extra = np.unique(inputs[place[inputs] < 0])
        place[extra] = len(among.items) + np.arange(len(extra))
        rows = np.concatenate([among.items, extra])
        local = place[inputs]
        place[rows] = -1
        return rows, local

    def _update(
        self, window: Window, carried: torch.Tensor | None, rng: np.random.Generator, dropout: np.random.Generator
    ) -> tuple[torch.Tensor, float, int]:
        """One step of the optimizer on one window. Returns (state to carry (1, B, D), loss, pairs)."""
        config, network = self.config, self.network
        at = np.flatnonzero(window.valid)
        targets = window.targets.ravel()[at]
        if self._full:
            among = all_items(targets, len(network.embedding))
        else:
            among = self._sampler.candidates(targets, config.negatives, rng)
        rows, local = self._rows(window.inputs.ravel()[at], among)
        candidates = len(among.items)
        rows_t = torch.from_numpy(rows)
        embedding = network.embedding[rows_t].requires_grad_()  # (R, D)
        bias = network.bias[rows_t[:candidates]].requires_grad_()  # (C,)

        padded = np.zeros(window.inputs.size, np.int64)
        padded[at] = local
        inputs = functional.embedding(torch.from_numpy(padded.reshape(window.inputs.shape)), embedding)  # (T, B, D)
        inputs = drop(inputs, config.input_dropout, dropout)
        outputs, hidden = network.gru(inputs, carried)
        states = outputs.view(-1, network.width).index_select(0, torch.from_numpy(at))  # (N, D)
        states = drop(states, config.hidden_dropout, dropout)
        loss = softmax_loss(states, embedding[:candidates], bias, among, bf16=self._bf16)
        self._dense.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._apply(rows_t, embedding, bias)
        # Sessions of unequal length: those that go on reach the window's end, so their last state is the one to carry.
        return hidden.detach(), loss.item(), len(at)

    def _apply(self, rows: torch.Tensor, embedding: torch.Tensor, bias: torch.Tensor) -> None:
        """Clip all gradients by their common norm, then step."""
        assert embedding.grad is not None
        assert bias.grad is not None
        gradients = [embedding.grad, bias.grad, *(p.grad for p in self._gru if p.grad is not None)]
        norm = torch.stack([g.norm() for g in gradients]).norm().item()
        if norm > self.config.clip_norm:
            for gradient in gradients:
                gradient.mul_(self.config.clip_norm / norm)
        rate = self._rate()
        for group in self._dense.param_groups:
            group["lr"] = rate
        self._dense.step()
        self._embedding.step(rows, embedding.grad, rate)
        self._bias.step(rows[: len(bias)], bias.grad, rate)


def drop(values: torch.Tensor, share: float, rng: np.random.Generator) -> torch.Tensor:
    """Dropout by random bytes, so in steps of 1/256: in a quarter of the time of torch's own generator."""
    if not share:
        return values
    dropped = round(share * 256)
    kept = torch.from_numpy(rng.integers(0, 256, values.shape, np.uint8) >= dropped)
    return values * kept * (256 / (256 - dropped))
