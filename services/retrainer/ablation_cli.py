"""make ablation: what each part of training is worth: the same log, with one setting changed at a time."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.table import Table

from services.retrainer.cli import add_log_flags, add_sequence_flag, add_train_flags, config_of, finish, read
from services.retrainer.progress import ProgressReport
from services.retrainer.recipe import advancing, holdout_share, sessions_of
from shared.adapters.settings import EventSettings
from shared.core.errors import SettingsInvalid
from shared.model.config import TrainConfig
from shared.model.dataset import Sessions, catalogue_of, hold_out, without_new_items
from shared.model.evaluate import evaluate, popularity
from shared.model.fit import fit
from shared.model.level import with_level

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "default": ("as it trains by itself", {}),
    "one-step": ("no gradient through time: each step learns alone, as in the reference GRU4Rec", {"bptt": 0}),
    "full-softmax": ("all items are negatives, none is drawn", {"negatives": 0}),
    "products": ("scores are products with a bias, not cosines", {"scale": 0.0}),
    "no-dropout": ("inputs are kept whole", {"input_dropout": 0.0}),
    "more-dropout": ("hidden states are thinned as well", {"hidden_dropout": 0.25}),
    "uniform": ("negatives are drawn evenly", {"popularity_power": 0.0}),
    "all-along": ("the last epochs learn all sessions, not the newest", {"newest": 1.0}),
    "no-level": ("what became popular last week is not put right", {"level": 0.0}),
    "offers-current": ("the current item is offered again, whatever the log shows", {"repeats_below": 0.0}),
    "no-fall": ("the learning rate stays high to the end", {"final_rate": 1.0}),
}
"""Name -> what it says, and the settings of TrainConfig that it changes."""


def main(argv: Sequence[str] | None = None) -> int:
    """Last line of stdout: {"variants": {name: {"recall20", "mrr20", "train_s"}}, "popularity", ...}; a table before.

    Exit 2: bad input, told in one line on stderr.
    """
    parser = argparse.ArgumentParser(prog="ablation", description=__doc__)
    parser.add_argument("--train", required=True, help="the log to train from")
    parser.add_argument("--test", help="the log to rank; default: the newest part of the other, then not trained on")
    parser.add_argument("--only", default=",".join(VARIANTS), metavar="NAMES", help="of: %(default)s")
    add_log_flags(parser)
    add_sequence_flag(parser, "auto")
    add_train_flags(parser)
    args = parser.parse_args(argv)
    return finish(lambda: _compare(args), args)


def _compare(args: argparse.Namespace) -> dict[str, Any]:
    names = [name.strip() for name in args.only.split(",") if name.strip()]
    if unknown := [name for name in names if name not in VARIANTS]:
        raise SettingsInvalid(f"--only {', '.join(unknown)}: there are {', '.join(VARIANTS)}")
    base = config_of(args)
    found: dict[str, dict[str, float]] = {}
    with ProgressReport() as report:
        train, test, items = _parts(args, report)
        for name in names:
            report.say(f"{name}: {VARIANTS[name][0]}")
            found[name] = _measured(replace(base, **VARIANTS[name][1]), train, test, items, report)
    baseline = popularity(train, test, items)
    Console(soft_wrap=True).print(_table(found, baseline.recall20, baseline.mrr20))
    return {
        "variants": found,
        "popularity": {"recall20": baseline.recall20, "mrr20": baseline.mrr20},
        "events": test.pairs,
        "items": items,
        "train_pairs": train.pairs,
        "config": base.to_json(),
    }


def _parts(args: argparse.Namespace, report: ProgressReport) -> tuple[Sessions, Sessions, int]:
    """(to train on, to rank, items of the former)."""
    rules = EventSettings().rules()
    log = advancing(read(args.train, args, report.say).events, rules)
    catalogue = catalogue_of(log)
    train = sessions_of(log, catalogue, args.train, args.sequence)
    if args.test:
        test_log = advancing(read(args.test, args, report.say).events, rules)
        return train, sessions_of(test_log, catalogue, args.test, args.sequence), len(catalogue)
    split = hold_out(train, catalogue, holdout_share(train.pairs))
    return split.older, without_new_items(split.newest, split.known), split.known


def _measured(
    config: TrainConfig, train: Sessions, test: Sessions, items: int, report: ProgressReport
) -> dict[str, float]:
    began = time.monotonic()
    fitted = fit(config, train, items, on_progress=report.training)
    weights = with_level(fitted.weights, train, config.level)
    train_s = time.monotonic() - began
    metrics = evaluate(weights, test, report.ranking)
    report.say(f"  Recall@20 {metrics.recall20:.4f}, MRR@20 {metrics.mrr20:.4f}, {train_s:.0f} s")
    return {"recall20": metrics.recall20, "mrr20": metrics.mrr20, "train_s": round(train_s, 2), "epochs": fitted.epochs}


def _table(found: dict[str, dict[str, float]], recall: float, mrr: float) -> Table:
    table = Table("variant", "what it changes", "Recall@20", "MRR@20", "training")
    for name, row in found.items():
        table.add_row(
            name, VARIANTS[name][0], f"{row['recall20']:.4f}", f"{row['mrr20']:.4f}", f"{row['train_s']:.0f} s"
        )
    table.add_row("popularity", "no model: the most frequent items", f"{recall:.4f}", f"{mrr:.4f}", "-")
    return table


if __name__ == "__main__":
    sys.exit(main())
