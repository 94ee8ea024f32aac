"""A policy's trainings: the first model from all that came before, later ones warm on the newest events."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from services.retrainer.adapt_stream import Stream
from shared.core.errors import LogUnreadable
from shared.model.config import TrainConfig
from shared.model.fit import fit
from shared.model.network import Weights
from shared.model.warm import warm_start


@dataclass(frozen=True, slots=True)
class Learning:
    """How models are made during a replay."""

    config: TrainConfig
    """Of the first model"""
    window: int
    """Newest events that a later training reads, at most"""
    epochs: int
    """Of a later training"""
    rate: float
    """Its learning rate, as a share of the first one's"""


@dataclass(frozen=True, slots=True)
class Made:
    """Weights and the processor seconds that they took: on a machine that does other work too, those of the training
    alone. Training runs in one thread, so on an idle machine they are the seconds of a clock."""

    weights: Weights
    seconds: float


def first_model(stream: Stream, end: int, learning: Learning) -> Made:
    """From all events before number ``end``. Raises LogUnreadable where they hold nothing to learn."""
    sessions = stream.window(end, end)
    if not sessions.pairs:
        raise LogUnreadable(f"the first {end:,} events hold no user with two: nothing to learn a first model from")
    began = time.process_time()
    weights = fit(learning.config, sessions, int(stream.seen[end - 1])).weights
    return Made(weights, time.process_time() - began)


def next_model(stream: Stream, end: int, learning: Learning, champion: Weights) -> Made:
    """Warm from the champion, its catalogue grown, on the newest events before number ``end``."""
    began = time.process_time()
    items = int(stream.seen[end - 1])
    config = learning.config
    gentle = replace(config, epochs=learning.epochs, newest=1.0, learning_rate=config.learning_rate * learning.rate)
    newest = stream.window(end, learning.window)
    start = warm_start(champion, newest, items, config.seed)
    weights = fit(gentle, newest, items, start=start).weights
    return Made(weights, time.process_time() - began)
