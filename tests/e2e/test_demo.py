"""`make demo`, short: it ends by itself, says what it measured, and leaves no process behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from services.simulator.shoppers import Shoppers
from tests.servers import IN_CI, ROOT, redis_server_path, until
from tests.stack_process import children, lives, stack_environment

pytestmark = pytest.mark.skipif(redis_server_path() is None and not IN_CI, reason="no redis-server")


def start(output: Path, *flags: str, **settings: object) -> subprocess.Popen[bytes]:
    small = {"DEMO_SECONDS": 20, "DEMO_HISTORY": 2500, "DEMO_RATE": 100, "DEMO_SHIFT_SECONDS": 3}
    env = stack_environment(**small | {"TRAIN_MIN_SESSIONS": 200, "TRAIN_EPOCHS": 2} | settings)
    with output.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "services.simulator.demo", *flags],
            cwd=ROOT,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def ended(process: subprocess.Popen[bytes], output: Path, seconds: float) -> tuple[int, str, list[int]]:
    """Exit code, what was said, and every process that was ever seen below the demo."""
    seen: set[int] = set()

    def over() -> bool:
        seen.update(children(process.pid))
        return process.poll() is not None

    try:
        until(over, seconds, "the demo to end")
    finally:
        process.kill()
        process.wait()
    return process.returncode, output.read_text(), sorted(seen)


@pytest.mark.slow
def test_shoppers_end_to_end(tmp_path: Path):
    output = tmp_path / "out"
    code, text, seen = ended(start(output), output, 170)
    assert code == 0, text
    assert len(seen) >= 8  # the stack, its six parts, the training
    assert not [pid for pid in seen if lives(pid)]
    assert re.search(r"the ranking held for the user +\d+\.\d%", text)
    assert re.search(r"freshness +p50 \d+ ms, p99 \d+ ms", text)
    line, answer = re.search(
        r"\$ (curl -s 'http://127\.0\.0\.1:\d+/v1/users/shopper-\d+/.*')\n +(\{.*\})\n", text
    ).groups()
    assert "k=5" in line
    ranking = json.loads(answer)
    assert (ranking["strategy"], len(ranking["items"])) == ("gru", 5)
    assert int(ranking["model_version"]) >= 1
    assert re.search(r"swap: version \d+ is in service", text)  # trained by the retrainer itself
    assert "taste shifts" in text
    assert (ROOT / ".run" / "demo.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_real_log_end_to_end(tmp_path: Path):
    shoppers = Shoppers(seed=5)
    actions = [shoppers.next() for _ in range(12_000)]
    pl.DataFrame(
        {
            "user_id": [action.user_id for action in actions],
            "item_id": [action.item_id for action in actions],
            "timestamp_ms": [1_500_000_000_000 + 100 * n for n in range(len(actions))],
        }
    ).write_parquet(tmp_path / "log.parquet")
    output = tmp_path / "out"
    process = start(output, "--data", str(tmp_path / "log.parquet"), DEMO_HISTORY=6000)
    code, text, seen = ended(process, output, 170)
    assert code == 0, text
    assert not [pid for pid in seen if lives(pid)]
    assert "12,000 events" in text
    assert '"strategy":"gru"' in text.replace(" ", "")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_a_stop_leaves_no_process(tmp_path: Path, signum: signal.Signals):
    output = tmp_path / "out"
    process = start(output)
    try:
        until(lambda: "the system is up" in output.read_text(), 90, "the system to be up")
        seen = children(process.pid)
        assert len(seen) == 6
        process.send_signal(signum)
        process.wait(60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == (130 if signum == signal.SIGINT else -signal.SIGKILL)
    until(lambda: not [pid for pid in seen if lives(pid)], 60, "all processes to end")


def test_a_part_that_fails_is_named(tmp_path: Path):
    output = tmp_path / "out"
    code, text, seen = ended(start(output, REDIS_URL="redis://127.0.0.1:1/0", STACK_READY_S=12), output, 90)
    assert code == 1
    assert "is not ready after 12 s" in text
    assert "127.0.0.1:1" in text
    assert not [pid for pid in seen if lives(pid)]


def test_an_unreadable_log_is_named(tmp_path: Path):
    output = tmp_path / "out"
    code, text, _ = ended(start(output, "--data", str(tmp_path / "none.csv")), output, 60)
    assert code == 1
    assert "none.csv: no such file" in text
    assert os.path.basename(sys.executable) not in text  # no traceback
