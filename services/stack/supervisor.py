"""Child processes: started, watched, started again when they die, stopped together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_LAUNCHER = Path(__file__).with_name("child.py")
_BACKOFF_S = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)  # before the 1st, 2nd, ... restart in a row
_STEADY_S = 30.0  # a process that ran so long starts again without delay
_KILLED_S = 5.0  # SIGKILL ends a process well within this, unless the machine is stuck
_TAIL_BYTES = 4000


@dataclass
class Child:
    """One process and how to run it again: the same command, environment and so the same ports and folders."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    restartable: bool = True
    pipe_stdout: bool = False
    process: subprocess.Popen[bytes] | None = None
    restarts: int = 0  # in a row, not in total
    started_at: float = 0.0  # monotonic seconds
    due_at: float | None = field(default=None)  # monotonic seconds of the next start, while it waits for one

    @property
    def pid(self) -> int | None:
        """Of the running process; None while there is none."""
        return self.process.pid if self.process is not None and self.process.poll() is None else None

    def start(self) -> None:
        """Start the process in a session of its own, so that a Ctrl-C in the terminal reaches only the stack."""
        launcher = [sys.executable, "-I", "-S", str(_LAUNCHER), "SIGKILL", str(os.getpid())]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*launcher, *self.command],
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if self.pipe_stdout else log,
                stderr=log,
                start_new_session=True,
            )
        self.started_at, self.due_at = time.monotonic(), None

    def tail(self, lines: int = 12) -> str:
        """The last lines of its log, indented."""
        try:
            text = self.log.read_bytes()[-_TAIL_BYTES:].decode("utf-8", "replace")
        except OSError:
            return ""
        return "\n".join(f"    {line}" for line in text.splitlines()[-lines:])


def ended(process: subprocess.Popen[bytes]) -> str:
    """How a finished process ended, in words."""
    code = process.returncode
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


class Supervisor:
    """Keeps its children running; ``tick`` does whatever is due now and never blocks."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.children: list[Child] = []
        self._say = say

    def add(self, child: Child) -> Child:
        """Start a child and watch it from now on. Raises OSError when its log cannot be written."""
        child.start()
        self.children.append(child)
        return child

    def tick(self) -> tuple[list[Child], Child | None]:
        """The children started again now, and one that has died for good (None: none has)."""
        again: list[Child] = []
        now = time.monotonic()
        for child in self.children:
            if child.due_at is None and child.process is not None and child.process.poll() is not None:
                if not child.restartable:
                    return again, child
                self._schedule(child, now)
            if child.due_at is not None and child.due_at <= now:
                child.start()
                again.append(child)
        return again, None

    def due_in(self) -> float:
        """Seconds until ``tick`` has something to do that no signal announces."""
        due = [child.due_at for child in self.children if child.due_at is not None]
        return max(0.0, min(due) - time.monotonic()) if due else 3600.0

    def stop(self, children: Sequence[Child], grace_s: float, wait: Callable[[float], bool]) -> None:
        """SIGTERM to all of them at once, SIGKILL to those that remain after ``grace_s`` seconds.

        ``wait(seconds)`` pauses until a signal comes, and says whether to go on being patient.
        """
        for child in children:
            _send(child, signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        while any(child.pid for child in children) and time.monotonic() < deadline:
            if not wait(min(0.5, deadline - time.monotonic())):
                break
        for child in children:
            if child.pid:
                self._say(f"{child.name} did not stop in time: SIGKILL")
                _send(child, signal.SIGKILL)
        for child in children:
            if child.process is not None:
                child.process.wait(_KILLED_S)
                if child.process.stdout is not None:
                    child.process.stdout.close()
            child.due_at = None
            if child in self.children:
                self.children.remove(child)

    def _schedule(self, child: Child, now: float) -> None:
        assert child.process is not None
        if now - child.started_at > _STEADY_S:
            child.restarts = 0
        delay = _BACKOFF_S[min(child.restarts, len(_BACKOFF_S) - 1)]
        child.restarts += 1
        child.due_at = now + delay
        when = f"in {delay:g} s" if delay else "now"
        self._say(f"{child.name} (pid {child.process.pid}) {ended(child.process)}; starting it again {when}")


def _send(child: Child, signum: signal.Signals) -> None:
    if child.process is not None and child.process.poll() is None:
        child.process.send_signal(signum)
