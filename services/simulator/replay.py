"""Publish a real log to the interactions topic, in time order: ``python -m services.simulator.replay`` (make replay).

The same row always gets the same event id, so that a replay which is repeated or goes on with --offset does no harm:
the consumer applies an id once within a user's last 16 events. The last line of stdout is JSON:
{"published": events acknowledged by the broker, "seconds": ...}.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import polars as pl
from pydantic import ValidationError

from services.simulator.keep_up import KeepUp, keep_up
from services.simulator.pace import Pace
from services.simulator.replay_flags import parse
from services.simulator.report import StreamReport
from shared.adapters.embedded import recognise
from shared.adapters.interaction_logs import load_log
from shared.adapters.kafka import KafkaPublisher
from shared.adapters.kafka_reader import ensure_topics
from shared.adapters.settings import KafkaSettings
from shared.core.errors import DriftwoodError, Unavailable
from shared.core.events import Interaction, encode
from shared.core.ports import Publisher

_SLICE = 10_000  # rows turned into Python objects at once
_CONFIRM_S = 2.0  # between two waits for the broker's acknowledgement of everything sent so far
_FLUSH_S = 60.0
_LAG_EVERY = 5_000  # events between two looks at the consumer's lag
_INTERRUPTED = 130


@dataclass
class Progress:
    """How far a replay has come; ``confirmed`` counts what the broker has acknowledged."""

    sent: int = 0
    confirmed: int = 0
    stop: threading.Event = field(default_factory=threading.Event)


def select(log: pl.DataFrame, args: argparse.Namespace) -> pl.DataFrame:
    """The part of the log to publish, with ``row``: its place in the whole log, from which event ids are made."""
    rows = log.with_row_index("row")
    if args.since is not None:
        rows = rows.filter(pl.col("ts") >= args.since)
    if args.until is not None:
        rows = rows.filter(pl.col("ts") < args.until)
    return rows.slice(args.offset, args.limit)


def interactions(rows: pl.DataFrame) -> Iterator[Interaction]:
    """One interaction a row, in order."""
    names = ["user_id", "item_id", "event_type", "ts", "session_id", "row"]
    for start in range(0, rows.height, _SLICE):
        for user, item, kind, ts, session, row in rows.slice(start, _SLICE).select(names).iter_rows():
            yield Interaction(user, item, kind, ts, f"replay-{row:x}-{ts:x}", session)


def publish(
    events: Iterator[Interaction],
    publisher: Publisher,
    topic: str,
    pace: Pace,
    progress: Progress,
    report: StreamReport,
    limiter: KeepUp,
    restamp: bool = False,
) -> None:
    """Send all events, waiting for the broker's acknowledgement every few seconds and at the end.

    Raises Unavailable; ``progress.confirmed`` then tells how many are safe.
    """
    next_confirm = time.monotonic() + _CONFIRM_S
    for event in events:
        wait = pace.wait_s(event.ts)
        if wait > 0:
            progress.stop.wait(wait)
        if progress.stop.is_set():
            break
        if restamp:
            event = _restamped(event)
        publisher.send(topic, event.user_id.encode(), encode(event))
        progress.sent += 1
        if progress.sent % 256 == 0 or wait > 0:
            report.show(progress.sent)
            if time.monotonic() >= next_confirm:
                _confirm(publisher, progress)
                next_confirm = time.monotonic() + _CONFIRM_S
        if limiter.limit and progress.sent % _LAG_EVERY == 0:
            _confirm(publisher, progress)
            limiter.wait(progress.stop, lambda note: report.show(progress.sent, note))
    _confirm(publisher, progress)
    report.show(progress.sent)


def _restamped(event: Interaction) -> Interaction:
    now = time.time_ns() // 1_000_000
    return Interaction(event.user_id, event.item_id, event.event_type, now, event.event_id, event.session_id)


def _confirm(publisher: Publisher, progress: Progress) -> None:
    publisher.flush(_FLUSH_S)
    progress.confirmed = progress.sent


def main(argv: Sequence[str] | None = None) -> int:
    """0: all published; 130: stopped by a signal; 1: the broker failed; 2: a wrong flag or a log that is unreadable."""
    progress = Progress()
    began = time.monotonic()
    code = 0
    try:
        args = parse(argv, (__doc__ or "").split(":")[0])
        kafka = recognise(KafkaSettings())
        code = _replay(args, kafka, progress)
    except KeyboardInterrupt:
        return _INTERRUPTED  # nothing was sent yet
    except Unavailable as error:
        print(f"error: {error}", file=sys.stderr)
        code = 1
    except (DriftwoodError, ValidationError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if code:
        done = args.offset + progress.confirmed
        print(f"stopped after {progress.confirmed:,} events; --offset {done} goes on from there", file=sys.stderr)
    print(json.dumps({"published": progress.confirmed, "seconds": round(time.monotonic() - began, 3)}), flush=True)
    return code


def _replay(args: argparse.Namespace, kafka: KafkaSettings, progress: Progress) -> int:
    log = load_log(args.data, args.format, args.columns)
    rows = select(log.events, args)
    print(f"{args.data}: {log.summary()}; publishing {rows.height:,} to {kafka.topic_interactions} at "
          f"{kafka.kafka_bootstrap_servers}", file=sys.stderr, flush=True)  # fmt: skip
    if kafka.kafka_create_topics:
        ensure_topics(kafka)
    publisher = KafkaPublisher(kafka)
    limiter = keep_up(kafka, args.max_lag)
    for signum in (signal.SIGINT, signal.SIGTERM):  # from here on a stop waits for what was sent
        signal.signal(signum, lambda *_: progress.stop.set())
    try:
        with StreamReport(rows.height) as report:
            pace = Pace(args.rate, args.speed)
            topic = kafka.topic_interactions
            publish(interactions(rows), publisher, topic, pace, progress, report, limiter, args.restamp)
    finally:
        limiter.close()
        publisher.close()
    return 0 if progress.confirmed == rows.height else _INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
