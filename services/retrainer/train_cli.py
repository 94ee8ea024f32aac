"""make train: a model from a log, evaluated on its newest sessions, published to the registry.

With several processes: torchrun --nproc_per_node=2 -m services.retrainer.train_cli --data log.csv (make train does it
with PROCESSES=2). Each update's sessions are shared out among them; the result is that of one process, but for the last
bits of sums.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
from services.retrainer.recipe import Run, learnable, train_model
from shared.adapters.registry import FileModelRegistry
from shared.adapters.settings import EventSettings, RegistrySettings
from shared.adapters.torchrun import torch_group


def main(argv: Sequence[str] | None = None) -> int:
    """Last line of stdout: {"version", "recall20", "mrr20", ...}. Exit 2: bad input, told in one line on stderr."""
    parser = argparse.ArgumentParser(prog="train", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", required=True, help="the log: CSV, TSV, Parquet, or a folder of Parquet files")
    parser.add_argument("--model-uri", default=RegistrySettings().model_uri, help="a directory or an fsspec URL")
    parser.add_argument(
        "--final",
        choices=("tune", "all", "evaluated"),
        default="tune",
        help="what to publish: the evaluated model after it has learnt the held-out sessions too; one trained anew on "
        "all; or the evaluated one as it is",
    )
    add_log_flags(parser)
    add_sequence_flag(parser, "user")
    add_train_flags(parser)
    add_checkpoint_flags(parser)
    args = parser.parse_args(argv)
    return finish(lambda: _train(args), args)


def _train(args: argparse.Namespace) -> dict[str, Any] | None:
    """None: a process that torchrun started beside the first one; it has done its share, and tells nothing."""
    config = config_of(args)
    registry = FileModelRegistry(args.model_uri)
    registry.current()  # a registry that cannot be reached is better known before the training
    with torch_group() as group, ProgressReport(quiet=group.rank > 0) as report:
        log, dismissing = learnable(read(args.data, args, report.say).events, EventSettings().rules())
        run = Run(config, report, Path(args.checkpoints), args.resume, group)
        trained = train_model(log, run, args.data, args.sequence, args.final, dismissing)
        if group.rank:
            return None
        manifest = registry.publish(
            trained.weights,
            trained.catalogue,
            config=config.to_json(),
            metrics=trained.metrics,
            lineage=trained.lineage | {"processes": group.size},
        )
        run.clear()
        report.say(f"published version {manifest.version} to {args.model_uri}")
    lineage = {f"trained_{name}" if name == "events" else name: value for name, value in trained.lineage.items()}
    return {
        "version": manifest.version,
        **trained.metrics,
        "items": len(trained.catalogue),
        **lineage,
        "model_uri": args.model_uri,
    }


if __name__ == "__main__":
    sys.exit(main())
