"""What the training and the evaluation command have in common: flags, settings, errors on one line."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import torch

from shared.adapters.interaction_logs import COLUMNS, InteractionLog, load_log
from shared.adapters.log_formats import FAMILIES, FORMATS
from shared.core.errors import DriftwoodError, SettingsInvalid
from shared.model.config import ModelConfig, TrainConfig

USAGE_ERROR = 2
THREADS = 1
"""Of torch. A second one trains 1.4 times as fast on an idle machine, but 4 to 20 times slower on a busy one, where
each of its many short parallel sections waits for the slower core; and a retrainer runs beside busy services."""
INTERRUPTED = 130


def add_log_flags(parser: argparse.ArgumentParser) -> None:
    """How to read a log."""
    parser.add_argument("--format", metavar="NAME", help=f"layout of the log: {', '.join({**FAMILIES, **FORMATS})}")
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="OURS=THEIRS",
        help=f"our column ({', '.join(COLUMNS)}) = the file's; may be repeated",
    )


def add_sequence_flag(parser: argparse.ArgumentParser, sequence: str) -> None:
    """How to cut a log; ``sequence`` is the default."""
    parser.add_argument(
        "--sequence",
        choices=("auto", "session", "user"),
        default=sequence,
        help="what one sequence is: the session; the user, all sessions one after the other, as states are carried "
        f"when serving; auto: the session where an event has one, else the user (default: {sequence})",
    )


def add_train_flags(parser: argparse.ArgumentParser) -> None:
    """How to train; defaults and their reasons are in shared/model/config.py."""
    parser.add_argument("--epochs", type=int, help="default: twelve, more for a small log")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--width", type=int, help="hidden units")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="any other setting of TrainConfig"
    )
    parser.add_argument("--threads", type=int, default=THREADS, help="results depend on it in the last bits")


def add_checkpoint_flags(parser: argparse.ArgumentParser) -> None:
    """How to go on with a training that was interrupted."""
    parser.add_argument("--resume", action="store_true", help="go on from the last epoch of the same run")
    parser.add_argument("--checkpoints", default=".run/train", metavar="FOLDER")


def config_of(args: argparse.Namespace) -> TrainConfig:
    """Raises SettingsInvalid."""
    config = TrainConfig()
    if args.width is not None:
        config = replace(config, model=ModelConfig(args.width))
    known = {f.name: type(getattr(config, f.name)) for f in fields(config) if f.name != "model"}
    changes: dict[str, Any] = {
        name: getattr(args, name) for name in ("epochs", "seed") if getattr(args, name) is not None
    }
    for name, value in _pairs(args.set, "--set"):
        if name not in known:
            raise SettingsInvalid(f"--set {name}: no such setting; there are {', '.join(known)}")
        try:
            changes[name] = known[name](value)
        except ValueError as error:
            raise SettingsInvalid(f"--set {name}: {value!r} is not a number of its kind") from error
    return replace(config, **changes)


def read(path: str, args: argparse.Namespace, say: Callable[[str], None]) -> InteractionLog:
    """The log of a flag, with its summary said. Raises LogUnreadable, SettingsInvalid."""
    found = load_log(path, args.format, dict(_pairs(args.column, "--column")))
    say(f"{path}: {found.summary()}")
    return found


def _pairs(texts: list[str], flag: str) -> list[tuple[str, str]]:
    pairs = [text.partition("=") for text in texts]
    for name, equals, value in pairs:
        if not (name and equals and value):
            raise SettingsInvalid(f"{flag} {name}{equals}{value}: expected NAME=VALUE")
    return [(name, value) for name, _, value in pairs]


def finish(work: Callable[[], dict[str, Any] | None], args: argparse.Namespace) -> int:
    """Run, print the result (None: there is none to print) as the last line, and return the exit status: 2 with one
    clear line for bad input. args: with the flags of ``add_train_flags``."""
    torch.set_num_threads(max(1, args.threads))
    try:
        result = work()
    except DriftwoodError as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        print("interrupted" + ("; --resume goes on from the last epoch" if "resume" in args else ""), file=sys.stderr)
        return INTERRUPTED
    if result is not None:
        print(json.dumps(result), flush=True)
    return 0
