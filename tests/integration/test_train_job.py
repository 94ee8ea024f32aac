"""The training as processes: killed at bad moments, terminated, several at once."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared.adapters.registry import FileModelRegistry
from shared.adapters.session_log import FileSessionLog
from shared.core.errors import ModelDamaged
from shared.core.events import Interaction
from shared.core.session_log_port import LogBatch
from tests.servers import until

JOB = ["-m", "services.retrainer.train_job"]
START = 1_700_000_000_000
DEADLINE_S = 120.0


def fill(folder: Path, sessions: int, dismissals: bool = False) -> None:
    rng = np.random.default_rng(0)
    events: list[Interaction] = []
    for user in range(sessions):
        item = int(rng.integers(60))
        for _ in range(int(rng.integers(3, 9))):
            item = (item + 1 + int(rng.integers(2))) % 60
            events.append(Interaction(f"u{user}", f"i{item}", "view", START + len(events)))
            if dismissals and rng.random() < 0.2:
                events.append(Interaction(f"u{user}", f"i{(item + 30) % 60}", "dismiss", START + len(events)))
    log = FileSessionLog(str(folder / "log"))
    log.append(LogBatch(0, 1, 0, len(events), events, range(len(events)), START))


def environment(folder: Path, **settings: object) -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("TRAIN_", "GATE_", "MODEL_"))}
    env |= {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1", "PYTHONPATH": os.getcwd()}
    env |= {"SESSION_LOG_URI": str(folder / "log"), "MODEL_URI": str(folder / "models")}
    env |= {"TRAIN_DIR": str(folder / "training"), "TRAIN_WIDTH": "16", "TRAIN_MIN_SESSIONS": "50"}
    return env | {name.upper(): str(value) for name, value in settings.items()}


def start(folder: Path, *command: str, **settings: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *command],
        env=environment(folder, **settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen[str]) -> tuple[int, dict[str, Any], str]:
    out, err = process.communicate(timeout=DEADLINE_S)
    lines = out.splitlines()
    return process.returncode, json.loads(lines[-1]) if lines else {}, err


def wait_for(condition: Any) -> None:
    until = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.002)


def whole(folder: Path) -> list[str]:
    """All versions, each of which loads; the pointer names one of them."""
    registry = FileModelRegistry(str(folder / "models"))
    versions = [manifest.version for manifest in registry.versions()]
    for version in versions:
        registry.load(version)
    assert registry.current() in [None, *versions]
    return versions


def test_killed_while_training_and_while_publishing_it_goes_on_or_begins_anew(tmp_path: Path) -> None:
    fill(tmp_path, 300)
    training, models = tmp_path / "training", tmp_path / "models" / "versions"
    slow = {"TRAIN_EPOCHS": 60, "TRAIN_WIDTH": 32}
    first = start(tmp_path, *JOB, **slow)
    wait_for(lambda: any(training.glob("run-*/last.safetensors")))
    first.kill()
    assert end(first)[0] == -signal.SIGKILL
    assert whole(tmp_path) == []

    second = start(tmp_path, *JOB, **slow)  # dies as soon as anything of a version is on disk
    wait_for(lambda: second.poll() is not None or (models.is_dir() and any(models.iterdir())))
    second.kill()
    status, _, said = end(second)
    assert "going on after epoch" in said
    assert status in (0, -signal.SIGKILL)
    whole(tmp_path)

    status, told, said = end(start(tmp_path, *JOB, **slow))
    assert status == 0, said
    assert told["promoted"], told
    assert FileModelRegistry(str(tmp_path / "models")).current() == told["published"]
    assert told["published"] in whole(tmp_path)


def test_sigterm_ends_it_at_once_and_says_so(tmp_path: Path) -> None:
    fill(tmp_path, 300)
    process = start(tmp_path, *JOB, train_epochs=5000)
    wait_for(lambda: any((tmp_path / "training").glob("run-*/last.safetensors")))
    process.terminate()
    status, told, _ = end(process)
    assert (status, told["outcome"], told["published"], told["promoted"]) == (143, "interrupted", None, False)


def test_nothing_to_learn_and_what_cannot_work_are_told_apart(tmp_path: Path) -> None:
    status, told, _ = end(start(tmp_path, *JOB))
    assert (status, told["outcome"], told["published"]) == (0, "empty window", None)
    (tmp_path / "models").write_text("no folder")
    fill(tmp_path, 60)
    status, told, said = end(start(tmp_path, *JOB))
    assert (status, told["outcome"]) == (2, "failed")
    assert "model registry" in told["error"]
    assert said.splitlines()[-1] == f"error: {told['error']}"


WORKER = """
import os, sys, time
from pathlib import Path
from shared.adapters.torchrun import torch_group
with torch_group():
    Path(sys.argv[1], str(os.getpid())).touch()
    time.sleep(100)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone ends a process with its parent")
def test_no_process_outlives_a_torchrun_that_was_killed(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(WORKER)
    (tmp_path / "pids").mkdir()
    run = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    torchrun = start(tmp_path, *run, str(tmp_path / "worker.py"), str(tmp_path / "pids"))

    def pids() -> list[int]:
        return [int(path.name) for path in (tmp_path / "pids").iterdir()]

    try:
        until(lambda: len(pids()) == 2, 60, "both work")
        torchrun.kill()
        until(lambda: not any(map(alive, pids())), 10, "they end with it")
    finally:
        torchrun.kill()
        torchrun.communicate()
        for pid in filter(alive, pids()):
            os.kill(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_torchrun_gives_the_result_of_one_process(tmp_path: Path) -> None:
    """Same negatives, same dropout, gradients added up: so only sums' last bits differ, which Adam makes visible."""
    fill(tmp_path, 250, dismissals=True)
    status, alone, said = end(start(tmp_path, *JOB, train_epochs=4))
    assert status == 0, said
    together = {"MODEL_URI": tmp_path / "together", "TRAIN_DIR": tmp_path / "other", "TRAIN_EPOCHS": 4}
    status, several, said = end(start(tmp_path, *JOB, **together, train_processes=2))
    assert status == 0, said
    assert several["published"] == "1"
    ours = [FileModelRegistry(str(tmp_path / name)).load("1").weights for name in ("models", "together")]
    for name, tensor in ours[0].items():
        assert (tensor - ours[1][name]).abs().max() <= 0.02 * tensor.abs().max(), name
    for kind in ("challenger", "popularity"):
        assert several["gate"][kind]["recall20"] == pytest.approx(alone["gate"][kind]["recall20"], abs=0.02)
    assert several["gate"]["events"] == alone["gate"]["events"]
    assert said.count("published version") == 1


def test_a_damaged_champion_pointer_does_not_stop_it(tmp_path: Path) -> None:
    fill(tmp_path, 100)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "current").write_bytes(b"{")
    with pytest.raises(ModelDamaged):
        FileModelRegistry(str(tmp_path / "models")).current()
    status, told, said = end(start(tmp_path, *JOB))
    assert (status, told["promoted"]) == (0, True), said
    assert whole(tmp_path) == ["1"]
