"""One whole training run: epochs, early stopping, and a state after each epoch from which it can go on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from shared.model.config import TrainConfig
from shared.model.dataset import Sessions, windows
from shared.model.dismissals import Ints
from shared.model.evaluate import event_ranks, metrics_of
from shared.model.group import ALONE, Group
from shared.model.network import Network, Weights
from shared.model.train import Progress, Trainer, TrainerState

TYPICAL_PAIRS = 2048
"""Hidden states of which the mean length is taken."""
BEST = "best."
"""Prefix of the best epoch's weights in a TrainerState."""


@dataclass(slots=True)
class Fitted:
    """A trained model and how it came about."""

    weights: Weights
    epochs: int
    loss: float
    """Mean of the last epoch, nats per pair; nan where nothing was left to do."""
    validation: list[float] = field(default_factory=list)
    """MRR@20 after each epoch, where there was a validation part and patience."""
    out_of_time: bool = False
    """Whether the time budget ended it."""


def fit(
    config: TrainConfig,
    sessions: Sessions,
    items: int,
    *,
    start: Weights | None = None,
    resume: TrainerState | None = None,
    validation: Sessions | None = None,
    asked: Ints | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_epoch: Callable[[TrainerState], None] | None = None,
    spent: Callable[[], float] | None = None,
    group: Group = ALONE,
) -> Fitted:
    """Train for ``config.epochs`` (0: see TrainConfig), or until validation MRR has not risen for ``patience`` epochs.

    start: weights to begin with; resume: what ``on_epoch`` was given, of a run with the same arguments. asked: (events
    of validation,) bool, those that count; default: all. spent: share of the time budget that is gone, asked before
    each update; at 1 training ends where it is. group: see Trainer.
    """
    trainer = Trainer(config, sessions, items, start, group)
    watched = validation if config.patience else None
    history: list[float] = []
    best: Weights | None = None
    if resume is not None:
        trainer.restore(resume)
        history = [float(value) for value in resume.meta["validation"]]
        best = {k.removeprefix(BEST): v for k, v in resume.tensors.items() if k.startswith(BEST)} or None
    loss = float("nan")
    while trainer.spent < 1 and trainer.epoch < trainer.config.epochs and not _stalled(history, config.patience):
        loss = trainer.run(on_progress, spent).loss
        if watched is not None:
            history.append(_mrr(trainer, watched, asked))
            if history[-1] == max(history):
                best = trainer.network.weights()
        if on_epoch and trainer.spent < 1:  # an epoch cut short is none to go on from
            on_epoch(_state(trainer, history, best))
    weights = _published(best or trainer.network.weights(), sessions, trainer.config.scale)
    return Fitted(weights, trainer.epoch, loss, history, trainer.spent >= 1)


def _published(weights: Weights, sessions: Sessions, scale: float) -> Weights:
    """Trained by cosines: with embeddings so long that a softmax over the products is about that of training.

    The order of scores is the same, but whoever compares them with a logarithm of popularity (fold_in) needs this.
    """
    if not scale:
        return weights
    network = Network.from_weights(weights)
    window = next(windows(sessions, TYPICAL_PAIRS, 32), None)
    if window is not None:
        with torch.inference_mode():
            outputs, _ = network.gru(network.embedding[torch.from_numpy(window.inputs)])
            length = outputs[torch.from_numpy(window.valid)].norm(dim=1).mean().item()
        network.for_products(scale / max(length, 1e-3))
    return network.weights()


def _mrr(trainer: Trainer, validation: Sessions, asked: Ints | None) -> float:
    rank = event_ranks(trainer.network.weights(), validation, asked, group=trainer.group)
    return metrics_of(rank[rank > 0]).mrr20


def _stalled(history: list[float], patience: int) -> bool:
    return bool(patience and history) and len(history) - 1 - history.index(max(history)) >= patience


def _state(trainer: Trainer, history: list[float], best: Weights | None) -> TrainerState:
    state = trainer.state()
    state.meta["validation"] = history
    state.tensors.update({BEST + name: tensor for name, tensor in (best or {}).items()})
    return state
