"""One whole training run: epochs, early stopping, and a state after each epoch from which it can go on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from shared.model.config import TrainConfig
from shared.model.dataset import Sessions
from shared.model.evaluate import evaluate
from shared.model.network import Weights
from shared.model.train import Progress, Trainer, TrainerState

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


def fit(
    config: TrainConfig,
    sessions: Sessions,
    items: int,
    *,
    start: Weights | None = None,
    resume: TrainerState | None = None,
    validation: Sessions | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_epoch: Callable[[TrainerState], None] | None = None,
) -> Fitted:
    """Train for ``config.epochs`` (0: see TrainConfig), or until validation MRR has not risen for ``patience`` epochs.

    start: weights to begin with; resume: what ``on_epoch`` was given, of a run with the same arguments.
    """
    trainer = Trainer(config, sessions, items, start)
    watched = validation if config.patience else None
    history: list[float] = []
    best: Weights | None = None
    if resume is not None:
        trainer.restore(resume)
        history = [float(value) for value in resume.meta["validation"]]
        best = {k.removeprefix(BEST): v for k, v in resume.tensors.items() if k.startswith(BEST)} or None
    loss = float("nan")
    while trainer.epoch < trainer.config.epochs and not _stalled(history, config.patience):
        loss = trainer.run(on_progress).loss
        if watched is not None:
            history.append(evaluate(trainer.network.weights(), watched).mrr20)
            if history[-1] == max(history):
                best = trainer.network.weights()
        if on_epoch:
            on_epoch(_state(trainer, history, best))
    return Fitted(best or trainer.network.weights(), trainer.epoch, loss, history)


def _stalled(history: list[float], patience: int) -> bool:
    return bool(patience and history) and len(history) - 1 - history.index(max(history)) >= patience


def _state(trainer: Trainer, history: list[float], best: Weights | None) -> TrainerState:
    state = trainer.state()
    state.meta["validation"] = history
    state.tensors.update({BEST + name: tensor for name, tensor in (best or {}).items()})
    return state
