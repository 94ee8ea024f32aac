"""A challenger: warm from the champion, asked about the newest events before it learns them, then taught those too."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from services.retrainer.budget import TimeBudget
from services.retrainer.gate import GateRules, Verdict, ask, judge
from services.retrainer.recipe import Reporter
from shared.core.errors import ModelDamaged
from shared.model.config import MAX_EPOCHS, TrainConfig
from shared.model.dismissals import Ints
from shared.model.evaluate import event_ranks
from shared.model.fit import Fitted, fit
from shared.model.group import ALONE, Group
from shared.model.holdout import Newest
from shared.model.network import Weights
from shared.model.train import TrainerState
from shared.model.warm import warm_start

WARM_EPOCHS = 5
WARM_RATE = 1.0
"""Share of the first model's learning rate at which a champion learns on: all of it. On Globo 50,000 newest events in 2
epochs at a fifth of it give Recall@20 .603 on the next 10,000, in 3 at .4 .622, in 3 at the whole .628, in 5 .646; on
Diginetica .375, .384, .396, .409. What is forgotten of old taste is not asked for again."""
WARM_UPDATES = 100
"""At least, of a small window in more epochs."""
PATIENCE = 1
"""Epochs without a better MRR on the events kept for stopping."""
TUNE_EPOCHS = 3
"""Of the newest events, once they were asked about, at the same rate: 8,000 of Globo give .685 on the next 10,000, in 2
epochs at a fifth of the rate .426; of Diginetica .409 and .405."""
STOP_LEAST = 2000
"""Asked events below which none are spared for stopping early: all are needed at the gate."""
STOP_OF = 4
"""One in so many sequences decides when to stop; the others are asked at the gate, which so has seen none of them."""
TRAIN_UNTIL, GATE_UNTIL, TUNE_UNTIL = 0.65, 0.85, 0.97
"""Shares of the time budget by which these stages end."""


@dataclass(frozen=True, slots=True)
class Challenger:
    """A trained model, the gate's verdict on it, and how it came about. ``weights`` know the first ``items`` items."""

    weights: Weights
    items: int
    verdict: Verdict
    fitted: Fitted
    final: str
    train_s: float


@dataclass(frozen=True, slots=True)
class Contest:
    """What a challenger is made from and measured against."""

    newest: Newest
    champion: Weights | None
    version: str | None
    config: TrainConfig
    rules: GateRules


def contest_config(config: TrainConfig, warm: bool, epochs: int, pairs: int) -> TrainConfig:
    """config: of a first model. epochs: 0: as many as are right for a first or for a later model. pairs: to learn."""
    if not warm:
        return replace(config, epochs=epochs, patience=PATIENCE + 1)
    needed = math.ceil(WARM_UPDATES * config.batch_events / max(1, pairs))
    rate = config.learning_rate * WARM_RATE
    chosen = epochs or min(MAX_EPOCHS, max(WARM_EPOCHS, needed))
    return replace(config, epochs=chosen, patience=PATIENCE, learning_rate=rate, newest=1.0)


def make_challenger(
    contest: Contest,
    budget: TimeBudget,
    report: Reporter,
    *,
    resume: TrainerState | None = None,
    on_epoch: Callable[[TrainerState], None] | None = None,
    group: Group = ALONE,
) -> Challenger:
    """Train, ask at the gate, and teach a winner the newest events. Raises ModelDamaged where numbers came to be that
    are not finite."""
    newest, config = contest.newest, contest.config
    began = time.monotonic()
    for_stopping, for_gate = spare_for_stopping(newest)
    validation, asked, _ = for_stopping.known_to(newest.known) if for_stopping else (None, None, None)
    start = None
    if contest.champion is not None and contest.champion["item_embedding"].shape[1] == config.model.width:
        start = warm_start(contest.champion, newest.older, newest.known, config.seed)
    fitted = fit(
        config,
        newest.older,
        newest.known,
        start=start,
        resume=resume,
        validation=validation,
        asked=asked,
        on_progress=report.training,
        on_epoch=on_epoch,
        spent=budget.until(TRAIN_UNTIL),
        group=group,
    )
    train_s = time.monotonic() - began
    check_finite(fitted.weights)
    report.say(f"asking about the newest {int(for_gate.asked.sum()):,} events")
    spent = budget.until(GATE_UNTIL)
    answers = ask(for_gate, fitted.weights, contest.champion, spent=spent, on_progress=report.ranking, group=group)
    verdict = judge(answers, contest.rules, contest.version)
    report.say(f"the gate: {verdict.numbers['decision']}: {verdict.reason}")
    if not verdict.promoted:
        return Challenger(fitted.weights, newest.known, verdict, fitted, "evaluated", train_s)
    tuned = _tuned(contest, fitted.weights, budget, report, group)
    if tuned is None:
        report.say("learning the newest events did it harm: it stays as it was evaluated")
        return Challenger(fitted.weights, newest.known, verdict, fitted, "evaluated", train_s)
    return Challenger(tuned, len(newest.catalogue), verdict, fitted, "tune", train_s)


def spare_for_stopping(newest: Newest) -> tuple[Newest | None, Newest]:
    """(sequences that decide when training stops, those for the gate)."""
    spared = np.arange(len(newest.whole)) % STOP_OF == STOP_OF - 1
    if int(newest.asked.sum()) < STOP_LEAST:
        return None, newest
    return newest.select(spared), newest.select(~spared)


def check_finite(weights: Weights) -> None:
    """Raises ModelDamaged."""
    for name, tensor in weights.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ModelDamaged(f"training came to numbers that are not finite, in {name}: nothing is published")


def _tuned(contest: Contest, weights: Weights, budget: TimeBudget, report: Reporter, group: Group) -> Weights | None:
    """With the newest events and their items learnt too; None where the outcome is worse on these than before."""
    newest, config = contest.newest, contest.config
    learn = newest.to_learn()
    report.say(f"learning the newest {learn.pairs:,} pairs and {len(newest.catalogue) - newest.known:,} new items")
    taught = replace(
        config, epochs=TUNE_EPOCHS, patience=0, newest=1.0, learning_rate=TrainConfig().learning_rate * WARM_RATE
    )
    start = warm_start(weights, learn, len(newest.catalogue), config.seed)
    spent = budget.until(TUNE_UNTIL)
    tuned = fit(
        taught, learn, len(newest.catalogue), start=start, on_progress=report.training, spent=spent, group=group
    ).weights
    check_finite(tuned)
    few = newest.select(_some(newest))
    before, after = (_hits(few, weights, newest.known, group), _hits(few, tuned, len(newest.catalogue), group))
    return tuned if after >= before else None


def _some(newest: Newest) -> Ints:
    """Sequences with about STOP_LEAST asked events, all of them where there are no more."""
    every = max(1, int(newest.asked.sum()) // STOP_LEAST)
    return np.arange(0, len(newest.whole), every)


def _hits(newest: Newest, weights: Weights, items: int, group: Group) -> int:
    sequences, asked, _ = newest.known_to(items)
    ranks = event_ranks(weights, sequences, asked, group=group)
    return int(((ranks > 0) & (ranks <= 20)).sum())


def lineage_of(challenger: Challenger, told: dict[str, Any], parent: str | None) -> dict[str, Any]:
    """For the manifest. told: of the window."""
    fitted = challenger.fitted
    return {
        "parent": parent,
        **told,
        "train_s": round(challenger.train_s, 2),
        "epochs": fitted.epochs,
        "out_of_time": fitted.out_of_time,
        "validation_mrr20": [round(value, 5) for value in fitted.validation],
        "final": challenger.final,
        "evaluated_on": "the newest events, before they were learnt",
    }
