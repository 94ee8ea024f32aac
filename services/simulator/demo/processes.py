"""The demo's child processes: the stack, and the training. Neither can outlive the demo."""

from __future__ import annotations

import importlib.util
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from shared.core.errors import DriftwoodError

# A demo has its own broker, registry and folder, and calls its own address without a key. Its users are invented: they
# have no place among those of a broker that somebody has exported for other work.
_NOT_PASSED_ON = (
    "KAFKA_BOOTSTRAP_SERVERS", "KAFKA_API_VERSION", "MODEL_URI", "SESSION_LOG_URI", "STACK_DIR",
    "HTTP_API_KEYS", "HTTP_API_KEYS_FILE",
)  # fmt: skip
_STACK_STOP_S = 45.0  # its own limit for two rounds of stopping is 30 s


class DemoFailed(DriftwoodError):
    """A part of the demo did not do its work; the message says which and shows its last words."""


def environment_of_its_own(folder: Path) -> dict[str, str]:
    """This process', for a stack that lives in ``folder`` and leaves what others store alone."""
    environment = {name: value for name, value in os.environ.items() if name not in _NOT_PASSED_ON}
    environment["STACK_DIR"] = str(folder / "stack")
    if "REDIS_URL" in environment:  # beside what else is there
        environment.setdefault("REDIS_PREFIX", f"{folder.name}:")
    return environment


def _launch(command: Sequence[str], signal_name: str, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start a command in a session of its own that gets ``signal_name`` when the demo ends in whatever way."""
    spec = importlib.util.find_spec("services.stack.child")
    if spec is None or spec.origin is None:
        raise DemoFailed("services.stack is not installed")
    launcher = [sys.executable, "-I", "-S", spec.origin, signal_name, str(os.getpid())]
    return subprocess.Popen(
        [*launcher, *command],
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _follow(stream: IO[str] | None, on_line: Callable[[str], None]) -> threading.Thread:
    """Read a child's output to its end, so that it never blocks on a full pipe."""

    def read() -> None:
        assert stream is not None
        with stream:
            for line in stream:
                on_line(line.rstrip("\n"))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread


class Stack:
    """``python -m services.stack`` as a child. ``on_line`` gets its progress."""

    def __init__(self, environment: Mapping[str, str], on_line: Callable[[str], None]) -> None:
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._said: deque[str] = deque(maxlen=30)
        self._was_ready = False
        self._process = _launch([sys.executable, "-m", "services.stack"], "SIGTERM", environment)

        def heard(line: str) -> None:
            self._said.append(line)
            on_line(line)

        self._threads = [
            _follow(self._process.stdout, self._answers.put),
            _follow(self._process.stderr, heard),
        ]

    def ready(self, check: Callable[[], None]) -> dict[str, Any]:
        """Wait for the ready line; ``check`` may raise to give up. Raises DemoFailed."""
        while True:
            check()
            try:
                line: dict[str, Any] = json.loads(self._answers.get(timeout=0.1))
                self._was_ready = True
                return line
            except queue.Empty:
                self.check()

    def check(self) -> None:
        """Raises DemoFailed when the stack has ended."""
        if self._process.poll() is not None:
            for thread in self._threads:
                thread.join(1.0)
            if not self._was_ready:
                raise DemoFailed("the system did not start: see above")
            said = "\n".join(f"    {line}" for line in self._said)
            raise DemoFailed(f"the stack ended with exit code {self._process.returncode}:\n{said}")

    @property
    def runs(self) -> bool:
        """Whether there is something to stop."""
        return self._process.poll() is None

    def stop(self) -> None:
        """SIGTERM, and SIGKILL if that does not help: its children die with it."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_STACK_STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for thread in self._threads:
            thread.join(1.0)


class Training:
    """``python -m services.retrainer.train_cli`` as a child, on one core: the stream needs the others.

    Several threads that meet after every small step would wait for each other more than they work.
    """

    def __init__(self, data: str, model_uri: str, flags: Sequence[str], environment: Mapping[str, str]) -> None:
        command = [sys.executable, "-m", "services.retrainer.train_cli", "--data", data, "--threads", "1"]
        self.began = time.monotonic()
        self._said: deque[str] = deque(maxlen=30)
        self._results: deque[str] = deque(maxlen=1)
        self._process = _launch([*command, "--model-uri", model_uri, *flags], "SIGKILL", environment)
        self._threads = [
            _follow(self._process.stdout, self._results.append),
            _follow(self._process.stderr, self._said.append),
        ]

    @property
    def last_words(self) -> str:
        """The newest line of its progress."""
        return self._said[-1].strip() if self._said else "starting"

    def result(self) -> dict[str, Any] | None:
        """What it printed at the end; None while it works. Raises DemoFailed."""
        if self._process.poll() is None:
            return None
        for thread in self._threads:
            thread.join(1.0)
        if self._process.returncode != 0 or not self._results:
            said = "\n".join(f"    {line}" for line in self._said)
            raise DemoFailed(f"the training ended with exit code {self._process.returncode}:\n{said}")
        found: dict[str, Any] = json.loads(self._results[-1])
        return found

    def stop(self) -> None:
        """Kill it if it still works."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for thread in self._threads:
            thread.join(1.0)
