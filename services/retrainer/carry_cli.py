"""make carry: does carrying a user's state across sessions beat starting each session afresh? Measured on a log.

The newest tenth of the events is ranked, each given what came before it, by three ways to treat a returning user:

- afresh: the model learnt single sessions, and each session starts from nothing;
- carried: it learnt a user's sessions one after the other, and the state goes on across them;
- mixed: it learnt single sessions, and the state goes on across them all the same.

They are compared on the same events: those inside sessions, of all users and of those who were seen before. What only a
carried state can answer is told beside: the first event of a returning user's session.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from rich.console import Console
from rich.table import Table

from services.retrainer.cli import add_log_flags, add_train_flags, config_of, finish, read
from services.retrainer.progress import ProgressReport
from services.retrainer.recipe import advancing, sessions_of
from shared.adapters.settings import EventSettings
from shared.core.errors import LogUnreadable
from shared.model.dataset import build_sessions, catalogue_of
from shared.model.dismissals import Ints
from shared.model.evaluate import event_ranks, metrics_of
from shared.model.fit import fit

NEWEST = 0.1
"""Share of the events that are ranked, and not learnt."""
WAYS = {
    "afresh": ("session", "session"),
    "carried": ("user", "user"),
    "mixed": ("session", "user"),
}
"""Name -> (what one sequence is in training, and when ranked)"""


class Places(NamedTuple):
    """Which events are asked about. (rows of the log,) bool each."""

    inside: Ints
    """New, and not the first of their session"""
    returning: Ints
    """Of these, where the user had an earlier session"""
    first: Ints
    """New, the first of a session, and the user had an earlier one"""


def main(argv: Sequence[str] | None = None) -> int:
    """Last line of stdout: {"ways": {name: {"inside", "returning", "first"}}, ...}; a table before. Exit 2: bad input,
    told in one line on stderr."""
    parser = argparse.ArgumentParser(prog="carry", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", required=True, help="a log with users and sessions")
    parser.add_argument("--events", type=int, default=0, help="only the first so many of the log; default: all")
    add_log_flags(parser)
    add_train_flags(parser)
    args = parser.parse_args(argv)
    return finish(lambda: _compare(args), args)


def _compare(args: argparse.Namespace) -> dict[str, Any]:
    config = config_of(args)
    with ProgressReport() as report:
        log = advancing(read(args.data, args, report.say).events, EventSettings().rules())
        log = log.head(args.events or log.height).filter(
            pl.col("session_id").is_not_null() & pl.col("user_id").is_not_null()
        )
        cut = int(log.height * (1 - NEWEST))
        catalogue = catalogue_of(log.head(cut))
        log = log.filter(pl.Series(np.arange(log.height) < cut) | pl.col("item_id").is_in(catalogue))
        places = places_of(log, cut)
        if not places.returning.any():
            raise LogUnreadable(f"{args.data}: no user of the newest tenth has an earlier session")
        weights: dict[str, dict[str, torch.Tensor]] = {}
        found: dict[str, dict[str, dict[str, float]]] = {}
        for name, (learnt, ranked) in WAYS.items():
            if learnt not in weights:
                report.say(f"{name}: training by {learnt}")
                began = time.monotonic()
                sessions = sessions_of(log.head(cut), catalogue, args.data, learnt)
                weights[learnt] = fit(config, sessions, len(catalogue), on_progress=report.training).weights
                report.say(f"  {time.monotonic() - began:.0f} s")
            ranks = ranks_of(weights[learnt], log, catalogue, ranked, cut)
            found[name] = {
                part: metrics_of(torch.from_numpy(ranks[mask & (ranks > 0)])).to_json()
                for part, mask in places._asdict().items()
                if part != "first" or ranked == "user"
            }
    Console(soft_wrap=True).print(_table(found))
    return {"ways": found, "events": log.height, "items": len(catalogue), "config": config.to_json()}


def places_of(log: pl.DataFrame, cut: int) -> Places:
    """log: sorted by time, with user_id and session_id; rows from ``cut`` on are new."""
    session, user = pl.col("session_id"), pl.col("user_id")
    rows = log.select(
        new=pl.int_range(pl.len()) >= cut,
        first=pl.int_range(pl.len()).over(session) == 0,
        # The user's first session is the one that their first event belongs to.
        before=session != session.first().over(user),
    )
    new, first, before = (rows[name].to_numpy() for name in ("new", "first", "before"))
    return Places(new & ~first, new & ~first & before, new & first & before)


def ranks_of(
    weights: dict[str, torch.Tensor], log: pl.DataFrame, catalogue: Sequence[str], sequence: str, cut: int
) -> Ints:
    """(rows of the log,) int64: the rank of each new event's item, given those before it; 0: not asked about."""
    sessions = build_sessions(log, catalogue, sequence)
    numbers = [str(row) for row in range(log.height)]
    rows = build_sessions(log.with_columns(item_id=pl.Series(numbers)), numbers, sequence).items
    ranks = np.zeros(log.height, np.int64)
    ranks[rows] = event_ranks(weights, sessions, rows >= cut).numpy()
    return ranks


def _table(found: dict[str, dict[str, dict[str, float]]]) -> Table:
    table = Table("way", "inside sessions", "of returning users", "first of a session", title="Recall@20, MRR@20")
    for name, parts in found.items():
        cells = [parts.get(part) for part in Places._fields]
        table.add_row(name, *(f"{cell['recall20']:.4f}, {cell['mrr20']:.4f}" if cell else "-" for cell in cells))
    return table


if __name__ == "__main__":
    sys.exit(main())
