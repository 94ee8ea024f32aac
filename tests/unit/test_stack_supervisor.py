"""The supervisor with small processes of its own: restarts, back-off, stopping."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.stack import supervisor as module
from services.stack.supervisor import Child, Supervisor
from tests.servers import until

FOREVER = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); print('up', flush=True)\n"
FOREVER += "while True: signal.pause()"
STUBBORN = FOREVER.replace("lambda *_: sys.exit(0)", "signal.SIG_IGN")


class World:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said: list[str] = []
        self.supervisor = Supervisor(self.said.append)

    def add(self, code: str, **options: bool) -> Child:
        name = f"part{len(self.supervisor.children)}"
        child = Child(name, [sys.executable, "-c", code], dict(os.environ), self.folder / f"{name}.log", **options)
        return self.supervisor.add(child)

    def up(self, child: Child, times: int = 1) -> None:
        until(lambda: child.log.read_text().count("up") == times, 20, "the child to run")

    def stop(self, grace_s: float = 10.0) -> None:
        def wait(seconds: float) -> bool:
            signal.sigtimedwait([signal.SIGCHLD], min(seconds, 0.02))
            return True

        self.supervisor.stop(list(self.supervisor.children), grace_s, wait)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.stop(0.0)


def test_what_dies_is_started_again_at_once(world: World):
    child = world.add(FOREVER)
    world.up(child)
    first = child.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    assert until(lambda: world.supervisor.tick()[0], 10) == [child]
    world.up(child, times=2)
    assert child.pid not in (None, first)
    assert world.said == [f"part0 (pid {first}) ended by SIGKILL; starting it again now"]


def test_what_dies_again_and_again_waits_longer(world: World, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_BACKOFF_S", (0.0, 0.01, 60.0))
    child = world.add("import sys; sys.exit(3)")
    until(lambda: world.supervisor.tick() and len(world.said) == 3, 20, "three ends")
    assert [line.rpartition(" again ")[2] for line in world.said] == ["now", "in 0.01 s", "in 60 s"]
    assert all("exit code 3" in line for line in world.said)
    assert 50 < world.supervisor.due_in() <= 60
    assert child.pid is None


def test_what_ran_long_starts_at_once_again(world: World, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_STEADY_S", 0.0)
    monkeypatch.setattr(module, "_BACKOFF_S", (0.0, 60.0))
    world.add("import sys; sys.exit(0)")
    until(lambda: world.supervisor.tick() and len(world.said) == 4, 20, "four ends")
    assert all(line.endswith("now") for line in world.said)


def test_what_may_not_come_back_is_reported(world: World):
    child = world.add("pass", restartable=False)
    assert until(lambda: world.supervisor.tick()[1], 10) is child


def test_stop_ends_all_and_kills_only_the_stubborn(world: World):
    gentle, stubborn = world.add(FOREVER), world.add(STUBBORN)
    world.up(gentle)
    world.up(stubborn)
    processes = [gentle.process, stubborn.process]
    world.stop(grace_s=0.5)
    assert [process.returncode for process in processes if process] == [0, -signal.SIGKILL]
    assert world.said == ["part1 did not stop in time: SIGKILL"]
    assert world.supervisor.children == []


def test_tail_of_the_log_is_the_end(world: World):
    child = world.add("for n in range(100): print('line', n)", restartable=False)
    until(lambda: world.supervisor.tick()[1], 10)
    assert child.tail(2) == "    line 98\n    line 99"
