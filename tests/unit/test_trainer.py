"""The training as a child process: what becomes of its last line, and of itself."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.retrainer.trainer import NICENESS, ChildTrainer, Outcome
from tests.servers import until
from tests.stack_process import lives


@pytest.fixture
def trainers() -> Iterator[list[ChildTrainer]]:
    """Stopped at the end."""
    made: list[ChildTrainer] = []
    yield made
    for trainer in made:
        trainer.stop()


def child(trainers: list[ChildTrainer], code: str, limit_s: float = 30.0, **environment: str) -> ChildTrainer:
    trainers.append(ChildTrainer([sys.executable, "-I", "-S", "-c", code], environment, limit_s))
    trainers[-1].start(1234)
    return trainers[-1]


def outcome(trainer: ChildTrainer) -> Outcome:
    return until(trainer.outcome, 20, "the training to end")


def test_the_last_line_is_the_result(trainers: list[ChildTrainer]):
    code = """if True:
        import json, os, sys
        print("epoch 1", file=sys.stderr)
        print("not this line")
        told = {"published": "2", "promoted": True, "nice": os.nice(0), "since": os.environ["TRAIN_SINCE_MS"]}
        print(json.dumps(told | {"set": os.environ["SET"]}))
    """
    trainer = child(trainers, code, SET="yes")
    assert trainer.running
    found = outcome(trainer)
    assert (found.word, found.problem, trainer.running) == ("promoted", "", False)
    assert found.result == {
        "published": "2", "promoted": True, "nice": min(19, os.nice(0) + NICENESS), "since": "1234", "set": "yes",
    }  # fmt: skip
    assert trainer.outcome() is None
    trainer.start(0)
    assert outcome(trainer).word == "promoted"


@pytest.mark.parametrize(
    ("told", "word"),
    [
        ({"published": "2", "promoted": False}, "kept back"),
        ({"published": None, "promoted": False}, "nothing"),
    ],
)
def test_other_ends(trainers: list[ChildTrainer], told: dict[str, object], word: str):
    assert outcome(child(trainers, f"print({json.dumps(told)!r})")).word == word


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ('import sys; print(\'{"error": "disk full"}\'); sys.exit(2)', "exit code 2: disk full"),
        ("raise SystemExit('no such module')", "exit code 1, its last line is no JSON object: no such module"),
        ("print('done')", "exit code 0, its last line is no JSON object: it said nothing"),
        ("print('[]')", "exit code 0, its last line is no JSON object: it said nothing"),
        ("import os; os.kill(os.getpid(), 11)", "ended by SIGSEGV: it said nothing"),
    ],
)
def test_a_training_that_breaks_says_why(trainers: list[ChildTrainer], code: str, problem: str):
    found = outcome(child(trainers, code))
    assert (found.word, found.problem) == ("failed", problem)


WITH_A_CHILD = """if True:
    import signal, subprocess, sys, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    below = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    open({path!r}, "w").write(f"{{below.pid}}\\n")
    time.sleep(100)
"""


def test_one_that_hangs_is_killed_with_all_below_it(trainers: list[ChildTrainer], tmp_path: Path):
    path = tmp_path / "pid"
    trainer = child(trainers, WITH_A_CHILD.format(path=str(path)), limit_s=3.0)
    below = int(until(lambda: path.exists() and path.read_text().strip(), 20, "its child"))
    assert "killed: it took over 3 s" in outcome(trainer).problem
    until(lambda: not lives(below), 10, "its child to end")


def test_stop_leaves_nothing_and_no_outcome(trainers: list[ChildTrainer], tmp_path: Path):
    path = tmp_path / "pid"
    code = WITH_A_CHILD.format(path=str(path)).replace("signal.SIG_IGN", "signal.SIG_DFL")
    trainer = child(trainers, code)
    below = int(until(lambda: path.exists() and path.read_text().strip(), 20, "its child"))
    trainer.stop()
    until(lambda: not lives(below), 10, "its child to end")
    assert (trainer.running, trainer.outcome()) == (False, None)
