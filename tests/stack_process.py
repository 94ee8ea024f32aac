"""`python -m services.stack` as a test sees it: its ready line, its processes, and what is left of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from tests.servers import ROOT, until

_OF_A_STACK = ("KAFKA_BOOTSTRAP_SERVERS", "KAFKA_API_VERSION", "REDIS_URL", "MODEL_URI", "STACK_DIR", "HTTP_PORT")


def stack_environment(**settings: object) -> dict[str, str]:
    """This process's environment without a stack's own settings, and with these."""
    base = {name: value for name, value in os.environ.items() if name not in _OF_A_STACK}
    return base | {name: str(value) for name, value in settings.items()}


def lives(pid: int) -> bool:
    """Whether this process runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def children(pid: int) -> list[int]:
    """Processes that this one started, and those that they started."""
    direct = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent == pid:
            direct.append(int(status.parent.name))
    return direct + [below for child in direct for below in children(child)]


class StackProcess:
    """Use as a context; at its end the stack is stopped if it still runs."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self.folder = folder
        self.said: list[str] = []
        self.printed: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "services.stack"],
            cwd=ROOT,
            env=stack_environment(STACK_DIR=folder, **settings),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._threads = [
            threading.Thread(target=self._read, args=(self.process.stdout, self.printed)),
            threading.Thread(target=self._read, args=(self.process.stderr, self.said)),
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> StackProcess:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        finally:
            self.process.kill()
            self.process.wait()
            for thread in self._threads:
                thread.join(10)

    @staticmethod
    def _read(stream, lines: list[str]) -> None:
        with stream:
            for line in stream:
                lines.append(line.rstrip("\n"))

    def ready(self, seconds: float = 90.0) -> dict[str, object]:
        """The ready line."""
        until(lambda: self.printed or self.process.poll() is not None, seconds, "the ready line")
        assert self.printed, "\n".join(self.said)
        return json.loads(self.printed[0])

    def pids(self) -> dict[str, int]:
        """Name of a part -> its process, as the stack last wrote it down."""
        return json.loads((self.folder / "stack.json").read_text())["pids"]

    def wait(self, seconds: float = 60.0) -> int:
        """The exit code."""
        code = self.process.wait(seconds)
        for thread in self._threads:
            thread.join(10)
        return code
