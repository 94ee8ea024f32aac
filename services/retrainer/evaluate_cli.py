"""make evaluate: full-ranking Recall@20 and MRR@20 on held-out sessions, of a fresh model or of a published one."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from services.retrainer.cli import (
    add_checkpoint_flags,
    add_log_flags,
    add_sequence_flag,
    add_train_flags,
    config_of,
    finish,
    read,
)
from services.retrainer.progress import ProgressReport
from services.retrainer.recipe import Run, advancing, measured, sessions_of
from shared.adapters.registry import FileModelRegistry
from shared.adapters.settings import EventSettings
from shared.core.errors import NoSuchVersion, SettingsInvalid
from shared.model.dataset import catalogue_of
from shared.model.level import with_level


def main(argv: Sequence[str] | None = None) -> int:
    """Last line of stdout: {"recall20", "mrr20", "events", ...}. Exit 2: bad input, told in one line on stderr."""
    parser = argparse.ArgumentParser(prog="evaluate", description=__doc__)
    parser.add_argument("--train", help="the log to train from; with --model-uri only for the popularity baseline")
    parser.add_argument("--test", required=True, help="the log to rank: items that training has not seen are dropped")
    parser.add_argument("--model-uri", help="evaluate a published model of this registry")
    parser.add_argument("--version", help="of the published model; default: the current one")
    add_log_flags(parser)
    add_sequence_flag(parser, "auto")
    add_train_flags(parser)
    add_checkpoint_flags(parser)
    args = parser.parse_args(argv)
    return finish(lambda: _published(args) if args.model_uri else _fresh(args), args)


def _fresh(args: argparse.Namespace) -> dict[str, Any]:
    if not args.train:
        raise SettingsInvalid("--train is needed, or --model-uri for a published model")
    config = config_of(args)
    with ProgressReport() as report:
        log, test_log = _events(args.train, args, report), _events(args.test, args, report)
        catalogue = catalogue_of(log)
        train = sessions_of(log, catalogue, args.train, args.sequence)
        test = sessions_of(test_log, catalogue, args.test, args.sequence)
        run = Run(config, report, Path(args.checkpoints), args.resume)
        began = time.monotonic()
        fitted = run.fit(train, len(catalogue))
        weights = with_level(fitted.weights, train, config.level)
        train_s = time.monotonic() - began
        metrics = measured(weights, train, test, report)
    return {
        **metrics,
        "train_s": round(train_s, 2),
        "train_events_per_s": round(train.pairs * fitted.epochs / train_s),
        "epochs": fitted.epochs,
        "items": len(catalogue),
        "train_events": len(train.items),
        "config": config.to_json(),
    }


def _published(args: argparse.Namespace) -> dict[str, Any]:
    registry = FileModelRegistry(args.model_uri)
    version = args.version or registry.current()
    if version is None:
        raise NoSuchVersion(f"{args.model_uri}: no model has been published yet")
    model = registry.load(version)
    with ProgressReport() as report:
        test = sessions_of(_events(args.test, args, report), model.items, args.test, args.sequence)
        train = None
        if args.train:
            train = sessions_of(_events(args.train, args, report), model.items, args.train, args.sequence)
        metrics = measured(model.weights, train, test, report)
    return {**metrics, "version": version, "items": len(model.items), "model_uri": args.model_uri}


def _events(path: str, args: argparse.Namespace, report: ProgressReport) -> pl.DataFrame:
    return advancing(read(path, args, report.say).events, EventSettings().rules())


if __name__ == "__main__":
    sys.exit(main())
