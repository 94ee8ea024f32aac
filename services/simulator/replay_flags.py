"""The flags of the replay."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime

from services.simulator.keep_up import EMBEDDED_MAX_LAG
from shared.core.errors import SettingsInvalid


def parse(argv: Sequence[str] | None, description: str) -> argparse.Namespace:
    """``columns`` is the mapping that --column gave. Raises SettingsInvalid; argparse ends the process for the rest."""
    parser = argparse.ArgumentParser(prog="replay", description=description)
    add = parser.add_argument
    add("--data", required=True, help="the log: CSV, TSV, Parquet, or a folder of Parquet files")
    add("--format", metavar="NAME", help="layout of the log, where its columns do not tell")
    add("--column", action="append", default=[], metavar="OURS=THEIRS", help="e.g. user_id=visitor; may be repeated")
    pace = parser.add_mutually_exclusive_group()
    pace.add_argument(
        "--rate", type=positive_number, default=0.0, help="events a second (default: as fast as possible)"
    )
    pace.add_argument(
        "--speed", type=positive_number, default=0.0, help="times the log's own time, e.g. 60: an hour a minute"
    )
    add("--from", dest="since", type=iso_time, metavar="TIME", help="ISO 8601 (UTC) or ms since the epoch; inclusive")
    add("--to", dest="until", type=iso_time, metavar="TIME", help="the same; exclusive")
    add("--offset", type=whole_number, default=0, metavar="N", help="leave out the first N events (after --from)")
    add("--limit", type=whole_number, metavar="N", help="publish at most N events")
    add("--restamp", action="store_true", help="give each event the time at which it is published")
    add("--max-lag", type=whole_number, metavar="N",
        help="wait while the consumer is more than N events behind; 0: never (default: never, and "
        f"{EMBEDDED_MAX_LAG} with the embedded broker, which forgets)")  # fmt: skip
    args = parser.parse_args(argv)
    args.columns = {}
    for text in args.column:
        ours, equals, theirs = text.partition("=")
        if not (ours and equals and theirs):
            raise SettingsInvalid(f"--column {text}: say OURS=THEIRS, as in --column user_id=visitor")
        args.columns[ours] = theirs
    return args


def positive_number(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError(text)
    return value


def whole_number(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError(text)
    return value


def iso_time(text: str) -> int:
    """Milliseconds since the epoch."""
    if text.isdigit() and len(text) > 8:
        return int(text)
    moment = datetime.fromisoformat(text)
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
