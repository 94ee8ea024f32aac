"""From a log to a model: cut, train, evaluate on the newest sessions, and finish on those as well."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl
import torch

from shared.adapters.checkpoints import Checkpoints
from shared.core.errors import LogUnreadable
from shared.core.events import EventRules
from shared.model.config import TrainConfig
from shared.model.dataset import Sessions, Split, build_sessions, catalogue_of, hold_out, without_new_items
from shared.model.dismissals import is_dismissal
from shared.model.evaluate import Metrics, evaluate, popularity
from shared.model.fit import Fitted, fit
from shared.model.group import ALONE, Group
from shared.model.level import with_level
from shared.model.network import Weights, grow
from shared.model.train import Progress, TrainerState

HOLDOUT_PAIRS = 2000
"""Fewer predictions than that say little: recall of .5 is then known to about .02."""
HOLDOUT_SHARES = (0.05, 0.2)
"""The newest share of a log that is held out: at least, and for small logs at most."""

META = "meta.json"
"""Name of a checkpoint's numbers among its tensors, on the way to other processes."""


class Reporter(Protocol):
    """How a run tells where it is."""

    def say(self, text: str) -> None:
        """A line that stays."""

    def training(self, progress: Progress) -> None:
        """Called after each update."""

    def ranking(self, done: int, total: int) -> None:
        """Events ranked so far, of all."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A model that can be published."""

    weights: Weights
    catalogue: list[str]
    metrics: dict[str, Any]
    lineage: dict[str, Any]


def sessions_of(
    log: pl.DataFrame, catalogue: list[str], source: str, sequence: str, dismissing: tuple[str, ...] = ()
) -> Sessions:
    """Raises LogUnreadable where there is nothing to learn from."""
    sessions = build_sessions(log, catalogue, sequence, dismissing)
    if not sessions.pairs:
        raise LogUnreadable(f"{source}: no session of two events or more: there is no next item to learn")
    return sessions


def advancing(log: pl.DataFrame, rules: EventRules) -> pl.DataFrame:
    """Events of the types that advance a state."""
    kept = [name for name in log["event_type"].unique().to_list() if rules.advances(name)]
    return log.filter(pl.col("event_type").is_in(kept))


def learnable(log: pl.DataFrame, rules: EventRules) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """(events that advance a state, and dismissals; the types of dismissals that there are)."""
    types = log["event_type"].unique().to_list()
    dismissing = tuple(sorted(name for name in types if name in rules.dismiss_types))
    kept = [name for name in types if rules.advances(name)]
    return log.filter(pl.col("event_type").is_in([*kept, *dismissing])), dismissing


def holdout_share(pairs: int) -> float:
    """Share of the (input, target) pairs to hold out."""
    low, high = HOLDOUT_SHARES
    return min(high, max(low, HOLDOUT_PAIRS / max(1, pairs)))


@dataclass(slots=True)
class Run:
    """Training with a checkpoint after each epoch, in a folder of its own for each set of data and settings."""

    config: TrainConfig
    report: Reporter
    folder: Path
    resume: bool
    group: Group = ALONE
    """The processes of this run; the first one keeps the checkpoints."""
    stores: list[Checkpoints] = field(default_factory=list)

    def fit(self, sessions: Sessions, items: int) -> Fitted:
        """From the start, or from the last epoch of the same run."""
        report = self.report
        report.say(f"training on {sessions.pairs:,} pairs of {len(sessions):,} sessions, {items:,} items")
        store = Checkpoints(self.folder / run_id(self.config, sessions, items))
        self.stores.append(store)
        state = shared_state(store.last() if self.resume and not self.group.rank else None, self.group)
        if self.resume:
            report.say(f"going on after epoch {state.meta['epoch']}" if state else "no checkpoint of this run")
        save = None if self.group.rank else store.save
        return fit(
            self.config, sessions, items, resume=state, on_progress=report.training, on_epoch=save, group=self.group
        )

    def tune(self, newest: Sessions, weights: Weights, new_items: int) -> Weights:
        """Learn sessions that came after training, at a rate that does not undo what the model knows."""
        self.report.say(f"learning the newest {newest.pairs:,} pairs and {new_items:,} new items")
        config = self.config
        rate = config.learning_rate * config.tune_rate
        gentle = replace(config, epochs=config.tune_epochs, patience=0, learning_rate=rate, newest=1.0)
        start = grow(weights, new_items, config.seed)
        items = len(start["item_embedding"])
        return fit(gentle, newest, items, start=start, on_progress=self.report.training, group=self.group).weights

    def clear(self) -> None:
        """The result is safe elsewhere. For the first process of a group."""
        for store in self.stores:
            store.clear()


def shared_state(state: TrainerState | None, group: Group) -> TrainerState | None:
    """The first process' checkpoint, in all processes."""
    told = {} if state is None else {**state.tensors, META: _as_tensor(json.dumps(state.meta).encode())}
    tensors = group.share(told)
    if META not in tensors:
        return None
    return TrainerState({k: v for k, v in tensors.items() if k != META}, json.loads(tensors[META].numpy().tobytes()))


def _as_tensor(content: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def train_model(
    log: pl.DataFrame,
    run: Run,
    source: str,
    sequence: str = "auto",
    final: str = "tune",
    dismissing: tuple[str, ...] = (),
) -> Trained:
    """Train on the older sessions, evaluate on the newest, then make the model to publish.

    final: "tune": the evaluated model grows by the newest items and learns the newest sessions too;
    "all": a new model from all sessions; "evaluated": the evaluated model itself. dismissing: types of events that are
    dismissals. Raises LogUnreadable.
    """
    catalogue = catalogue_of(log.filter(~is_dismissal(log, dismissing)))
    everything = sessions_of(log, catalogue, source, sequence, dismissing)
    split = hold_out(everything, catalogue, holdout_share(everything.pairs))
    if not split.older.pairs:  # too little to hold anything out
        split = Split(everything, everything.select(np.zeros(0, np.int64)), catalogue, len(catalogue))
    began = time.monotonic()
    fitted = run.fit(split.older, split.known)
    train_s = round(time.monotonic() - began, 2)
    weights = with_level(fitted.weights, split.older, run.config.level)
    metrics = measured(weights, split.older, without_new_items(split.newest, split.known), run.report, run.group)
    names = split.catalogue[: split.known]
    if final == "tune" and split.newest.pairs:
        names = split.catalogue
        weights = run.tune(split.newest, fitted.weights, len(names) - split.known)
        weights = with_level(weights, sessions_of(log, names, source, sequence, dismissing), run.config.level)
    elif final == "all":
        names = catalogue
        weights = with_level(run.fit(everything, len(names)).weights, everything, run.config.level)
    lineage = {
        "parent": None,
        "data": source,
        "trained_at": int(time.time() * 1000),
        "events": len(everything.items),
        "sessions": len(everything),
        "newest_event": int(everything.ended_at.max()),
        "train_s": train_s,
        "epochs": fitted.epochs,
        "final": final,
        "evaluated_on": "the newest sessions, before they were learnt",
    }
    return Trained(weights, names, metrics, lineage)


def run_id(config: TrainConfig, sessions: Sessions, items: int) -> str:
    """Same data and settings, same id."""
    digest = hashlib.sha256(json.dumps([config.to_json(), items], sort_keys=True).encode())
    digest.update(sessions.items.tobytes())
    digest.update(sessions.starts.tobytes())
    if len(sessions.dismissals):
        digest.update(sessions.dismissals.after.tobytes())
        digest.update(sessions.dismissals.items.tobytes())
    return digest.hexdigest()[:16]


def measured(
    weights: Weights, train: Sessions | None, test: Sessions, report: Reporter, group: Group = ALONE
) -> dict[str, Any]:
    """Metrics of the model, and of popularity where the training sessions are there."""
    began = time.monotonic()
    found = asdict(evaluate(weights, test, report.ranking, group))
    found["eval_s"] = round(time.monotonic() - began, 2)
    if train is not None:
        base: Metrics = popularity(train, test, len(weights["item_bias"]))
        found |= {"popularity_recall20": base.recall20, "popularity_mrr20": base.mrr20}
    return found
