"""The API against its own OpenAPI description: schemathesis sends what the description allows, and what it does not.

The whole HTTP application behind a real server on a free port; Kafka, Redis and the registry are the twins in memory.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn

from shared.core.events import EventRules
from tests.servers import ROOT, free_port, until
from tests.unit.recommender_twins import ITEMS, Twin

ANY_TIME = EventRules(max_future_ms=10**18)
"""EVENT_MAX_FUTURE_S at its most tolerant: a limit that moves with the clock cannot stand in the description."""


@pytest.fixture
def address() -> Iterator[str]:
    twin = Twin(rules=ANY_TIME)
    twin.act("ada", *ITEMS[:5])
    twin.popular(0, *ITEMS[:20])
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(twin.app, port=port, lifespan="off", log_config=None, date_header=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: server.started, 10.0, "the server")
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(10)
    twin.stop()


def test_the_api_keeps_to_its_description(address: str, tmp_path: Path):
    flags = ["--checks", "all", "--max-examples", "40", "--seed", "1", "--continue-on-failure", "--no-color"]
    done = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", "run", f"{address}/openapi.json", *flags],
        cwd=tmp_path,
        env=os.environ | {"SCHEMATHESIS_HOOKS": "tests.schemathesis_hooks", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Coverage" in done.stdout
    assert "Fuzzing" in done.stdout
