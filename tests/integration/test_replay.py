"""The replay command against a broker: what arrives, in which order, and what a stop leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import polars as pl
import pytest

from shared.adapters.kafka_reader import KafkaReader, OffsetReader
from shared.adapters.settings import KafkaSettings
from tests.servers import ROOT, until

ROWS = 3000


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log in another shop's columns, not in time order."""
    rows = {
        "visitor": [f"v{n % 50}" for n in range(ROWS)],
        "product": [f"p{n}" for n in range(ROWS)],
        "when": [1_500_000_000_000 + 1000 * (ROWS - n) for n in range(ROWS)],
    }
    pl.DataFrame(rows).write_parquet(tmp_path / "log.parquet")
    return tmp_path / "log.parquet"


def start(log: Path, kafka: KafkaSettings, *flags: str) -> subprocess.Popen[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("KAFKA_", "TOPIC_"))}
    env |= {"KAFKA_BOOTSTRAP_SERVERS": kafka.kafka_bootstrap_servers, "TOPIC_INTERACTIONS": kafka.topic_interactions}
    columns = ("user_id=visitor", "item_id=product", "ts=when")
    return subprocess.Popen(
        [sys.executable, "-m", "services.simulator.replay", "--data", str(log), "--max-lag", "0"]
        + [word for column in columns for word in ("--column", column)]
        + list(flags),
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def last_line(output: str) -> dict[str, float]:
    return json.loads(output.splitlines()[-1])


def test_all_arrives_acknowledged_and_each_user_in_time_order(log: Path, kafka_settings: KafkaSettings):
    output, said = start(log, kafka_settings).communicate(timeout=60)
    assert last_line(output)["published"] == ROWS, said
    reader = KafkaReader(kafka_settings, kafka_settings.topic_interactions, "test-replay")
    seen: dict[str, list[int]] = defaultdict(list)

    def all_read() -> bool:
        for record in reader.poll(0.2, 5000):
            value = json.loads(record.value or b"")
            assert record.key == value["user_id"].encode()
            seen[value["user_id"]].append(value["ts"])
        return sum(map(len, seen.values())) >= ROWS

    until(all_read, 30, "all events")
    reader.close()
    assert len(seen) == 50
    assert all(times == sorted(times) for times in seen.values())
    assert sum(map(len, seen.values())) == ROWS


def test_an_interrupted_replay_says_where_to_go_on(log: Path, kafka_settings: KafkaSettings):
    offsets = OffsetReader(kafka_settings)

    def written() -> int:
        return sum(offsets.end_offsets(kafka_settings.topic_interactions).values())

    process = start(log, kafka_settings, "--rate", "100")
    until(lambda: written() >= 20, 60, "the first events")
    process.send_signal(signal.SIGINT)
    output, said = process.communicate(timeout=60)
    published = int(last_line(output)["published"])
    assert process.returncode == 130
    assert 20 <= published < ROWS
    assert written() == published
    assert f"--offset {published} goes on from there" in said
    rest, _ = start(log, kafka_settings, "--offset", str(published)).communicate(timeout=60)
    assert last_line(rest)["published"] == ROWS - published
    assert written() == ROWS
    offsets.close()


def test_an_unreadable_log_and_an_unreachable_broker_are_named(tmp_path: Path, kafka_settings: KafkaSettings):
    missing = start(tmp_path / "none.parquet", kafka_settings)
    output, said = missing.communicate(timeout=60)
    assert (missing.returncode, output) == (2, "")
    assert "none.parquet: no such file" in said
