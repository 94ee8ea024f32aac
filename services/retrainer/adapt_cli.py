"""make adapt: learning policies compared on a log, prequentially: each event is tested first, then learnt.

Four policies begin with the same model: never train again; train every fixed span; train when engagement drifts; and
an oracle that trains every hour. Each later training is the services' own: warm from the last model, its catalogue
grown, on the newest events. When drift is found and which new items are folded in is told by the services' settings
(DRIFT_..., FOLD_IN_..., RECENT_ITEMS, POPULARITY_HALF_LIFE_S,
TRENDING_HALF_LIFE_S).
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from services.retrainer.adapt_learn import Learning, first_model
from services.retrainer.adapt_policies import HOUR_MS
from services.retrainer.adapt_replay import Outcome, ReplayRules
from services.retrainer.adapt_report import Bars, draw_outcomes, over_time, totals
from services.retrainer.adapt_run import NAMES, Comparison, compare
from services.retrainer.adapt_stream import Stream, stream_of
from services.retrainer.cli import add_log_flags, add_train_flags, config_of, finish, read
from services.retrainer.recipe import advancing
from shared.adapters.settings import ConsumerSettings, DriftSettings, EventSettings
from shared.core.drift import DriftRules
from shared.core.errors import SettingsInvalid

WIDTH = 64
"""Half of the services' default: the order of the policies is the same, and the comparison takes half the time."""
FIRST_EPOCHS = 5
TUNE_EPOCHS = 2
TUNE_RATE = 1.0
"""Share of the first model's learning rate, as in the retrainer's own trainings."""


def main(argv: Sequence[str] | None = None) -> int:
    """Last line of stdout: {"policies": {name: {"recall20", "mrr20", "trainings", "train_s", ...}}, "events", ...}."""
    args = _parser().parse_args(argv)
    return finish(lambda: _adapt(args), args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="adapt", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", required=True, help="the log: CSV, TSV, Parquet, or a folder of Parquet files")
    parser.add_argument("--png", type=Path, default=Path(".run/adapt.png"), help="the chart (default: %(default)s)")
    parser.add_argument("--limit", type=int, help="only the first so many events of the log")
    parser.add_argument("--until", type=float, metavar="DAYS", help="only the first so many days of the log")
    parser.add_argument("--policies", default=",".join(NAMES), help="comma-separated; default: all")
    parser.add_argument("--warmup", type=float, default=24.0, metavar="HOURS", help="of the log, for the first model")
    parser.add_argument("--every", type=float, default=24.0, metavar="HOURS", help="the fixed span")
    parser.add_argument("--window", type=int, default=20_000, help="newest events that a training reads")
    parser.add_argument("--tune-epochs", type=int, default=TUNE_EPOCHS, help="epochs of each training but the first")
    parser.add_argument("--slice", type=float, default=120.0, metavar="S", help="of the log, tested together")
    parser.add_argument("--score-every", type=int, default=1, metavar="N", help="rank one in N of the tested events")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="policies side by side")
    add_log_flags(parser)
    add_train_flags(parser)
    return parser


def _adapt(args: argparse.Namespace) -> dict[str, Any]:
    names = tuple(name.strip() for name in args.policies.split(",") if name.strip())
    unknown = set(names) - set(NAMES)
    if unknown or not names:
        raise SettingsInvalid(f"--policies {args.policies}: there are {', '.join(NAMES)}")
    began = time.monotonic()
    errors = Console(stderr=True)
    work = _prepare(args, lambda text: errors.print(text, highlight=False, soft_wrap=True))
    with Bars(names, work.rules.begin, len(work.stream), errors) as bars:
        outcomes = compare(work, names, max(1, args.jobs), bars.show)
    console = Console()
    console.print(over_time(outcomes), totals(outcomes), highlight=False)
    title = f"{args.data}: {len(work.stream):,} events, test then learn"
    png = draw_outcomes(args.png, title, outcomes)
    console.print(f"drawn: {png}", highlight=False)
    return _result(outcomes, work, str(png), time.monotonic() - began)


def _prepare(args: argparse.Namespace, say: Any) -> Comparison:
    config = replace(config_of(args), epochs=args.epochs or FIRST_EPOCHS)
    if args.width is None:
        config = replace(config, model=replace(config.model, width=WIDTH))
    log = advancing(read(args.data, args, say).events, EventSettings().rules())
    if args.until:
        log = log.filter(log["ts"] < log["ts"][0] + int(args.until * 24 * HOUR_MS))
    stream = stream_of(log.head(args.limit) if args.limit else log, args.data)
    begin = int(np.searchsorted(stream.ts, stream.ts[0] + int(args.warmup * HOUR_MS)))
    if not 0 < begin < len(stream) or not stream.tested[begin:].any():
        raise SettingsInvalid(f"--warmup {args.warmup:g}: the log has nothing to test after that")
    learning = Learning(config, args.window, args.tune_epochs, TUNE_RATE)
    say(f"training the first model on {begin:,} events; {len(stream) - begin:,} remain to be replayed")
    first = first_model(stream, begin, learning)
    return Comparison(stream, first, learning, _rules(begin, args), _drift_rules(), int(args.every * HOUR_MS))


def _rules(begin: int, args: argparse.Namespace) -> ReplayRules:
    """As the services are set."""
    settings = ConsumerSettings()
    return ReplayRules(
        begin,
        slice_ms=round(args.slice * 1000),
        recent=settings.recent_items,
        fold_min=settings.fold_in_min,
        fold_items=settings.fold_in_items,
        half_life_s=settings.popularity_half_life_s or settings.trending_half_life_s,
        correct=settings.popularity_half_life_s > 0,
        refine_items=settings.refine_items,
        score_every=args.score_every,
    )


def _drift_rules() -> DriftRules:
    settings = DriftSettings()
    return DriftRules(
        settings.drift_min_events, settings.drift_cooldown_s, settings.drift_delta, settings.drift_min_fall
    )


def _result(outcomes: dict[str, Outcome], work: Comparison, png: str, seconds: float) -> dict[str, Any]:
    policies = {name: outcome.summary() for name, outcome in outcomes.items()}
    result: dict[str, Any] = {"policies": policies, "events": _tested(work.stream, work.rules.begin)}
    if "drift" in policies and "oracle" in policies:
        drift, oracle = policies["drift"], policies["oracle"]
        result["drift_of_oracle"] = {
            "recall20": round(drift["recall20"] / max(1e-9, oracle["recall20"]), 4),
            "train_s": round(drift["train_s"] / max(1e-9, oracle["train_s"]), 4),
        }
    return {**result, "png": png, "seconds": round(seconds, 1)}


def _tested(stream: Stream, begin: int) -> int:
    return int(stream.tested[begin:].sum())


if __name__ == "__main__":
    sys.exit(main())
