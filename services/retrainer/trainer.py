"""The training as a child process: one at a time, after everything else on the machine, and ended with its parent."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Any, Protocol

from shared.core.errors import SettingsInvalid

log = logging.getLogger(__name__)

NICENESS = 10
"""The stream and the rankings go first: Linux gives such a process a tenth of the time that others want."""
_STOP_S = 5.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a training ended. result: its last line, empty where it broke; problem: empty, or why it broke."""

    seconds: float
    result: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""

    @property
    def word(self) -> str:
        """promoted, kept back (by the gate), nothing (was there to learn), or failed."""
        if self.problem:
            return "failed"
        if self.result.get("promoted"):
            return "promoted"
        return "kept back" if self.result.get("published") else "nothing"


class Trainer(Protocol):
    """Runs one training at a time, beside its caller."""

    @property
    def running(self) -> bool:
        """Whether one was started whose outcome was not asked for yet."""

    def start(self, since_ms: int) -> None:
        """Begin; only while none runs. since_ms: when taste began to change, 0: unknown."""

    def outcome(self) -> Outcome | None:
        """How it ended, told once; None while it works or none was started."""

    def stop(self) -> None:
        """End it, if one works; it has no outcome."""


class ChildTrainer:
    """The Trainer port. limit_s: one that takes longer hangs, and is killed; 0: no limit.

    ``start`` belongs to a thread that lives as long as the process: Linux ends the child when that thread ends.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], limit_s: float) -> None:
        self._command, self._environment, self._limit_s = list(command), dict(environment), limit_s
        self._process: subprocess.Popen[str] | None = None
        self._began = 0.0
        self._printed: deque[str] = deque(maxlen=1)
        self._said: deque[str] = deque(maxlen=20)
        self._threads: list[threading.Thread] = []

    @property
    def running(self) -> bool:
        """See Trainer."""
        return self._process is not None

    def start(self, since_ms: int) -> None:
        """See Trainer. Raises SettingsInvalid where it cannot be started at all."""
        assert self._process is None
        self._printed.clear()
        self._said.clear()
        launcher = importlib.util.find_spec("services.stack.child")
        if launcher is None or launcher.origin is None:
            raise SettingsInvalid("services.stack is not installed: it starts the training")
        command = [sys.executable, "-I", "-S", launcher.origin, "SIGKILL", str(os.getpid()), *self._command]
        self._began = time.monotonic()
        self._process = subprocess.Popen(
            command,
            env={**self._environment, "TRAIN_SINCE_MS": str(since_ms)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        os.setpriority(os.PRIO_PROCESS, self._process.pid, min(19, os.nice(0) + NICENESS))
        self._threads = [
            _follow(self._process.stdout, self._printed.append),
            _follow(self._process.stderr, self._heard),
        ]
        log.info("training starts", extra={"pid": self._process.pid})

    def outcome(self) -> Outcome | None:
        """See Trainer."""
        if self._process is None:
            return None
        seconds = time.monotonic() - self._began
        if self._process.poll() is None:
            if not self._limit_s or seconds < self._limit_s:
                return None
            self._kill()
            self._said.append(f"killed: it took over {self._limit_s:.0f} s")
        return self._told(self._end(), seconds)

    def stop(self) -> None:
        """See Trainer. SIGTERM first: it may leave a checkpoint behind."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_S)
        self._kill()
        self._end()

    def _kill(self) -> None:
        """The whole session: several processes may train together."""
        assert self._process is not None
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    def _end(self) -> int:
        assert self._process is not None
        code = self._process.wait()
        for thread in self._threads:
            thread.join(5.0)
        self._process = None
        return code

    def _told(self, code: int, seconds: float) -> Outcome:
        if code < 0:
            return Outcome(seconds, {}, f"ended by {signal.Signals(-code).name}: {self._last_words()}")
        try:
            result = json.loads(self._printed[-1])
        except (IndexError, json.JSONDecodeError):
            result = None
        if not isinstance(result, dict):
            return Outcome(seconds, {}, f"exit code {code}, its last line is no JSON object: {self._last_words()}")
        if code:
            return Outcome(seconds, {}, f"exit code {code}: {result.get('error') or self._last_words()}")
        return Outcome(seconds, result)

    def _last_words(self) -> str:
        return self._said[-1] if self._said else "it said nothing"

    def _heard(self, line: str) -> None:
        if line.strip():
            self._said.append(line.strip())
            log.info("training: %s", line.strip())


def _follow(stream: IO[str] | None, on_line: Any) -> threading.Thread:
    """Read a child's output to its end, so that it never waits on a full pipe."""

    def read() -> None:
        assert stream is not None
        with stream:
            for line in stream:
                on_line(line.rstrip("\n"))

    thread = threading.Thread(target=read, name="training-output", daemon=True)
    thread.start()
    return thread
