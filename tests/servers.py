"""Real servers for tests: those of the environment, else containers, else processes on this machine."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
import redis

ROOT = Path(__file__).parent.parent
REAL_KAFKA = ROOT.parent / "shared" / "kafka" / "start"
DATA = ROOT.parent / "shared" / "data"
IN_CI = os.environ.get("CI", "") not in ("", "0", "false")

T = TypeVar("T")


def until(probe: Callable[[], T], seconds: float = 60.0, what: str = "") -> T:
    """Wait until ``probe`` gives something true, and return it; fail after ``seconds``."""
    deadline = time.monotonic() + seconds
    while True:
        if result := probe():
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what or probe}")
        time.sleep(0.02)


def missing(what: str) -> None:
    """Skip on a developer's machine, fail in CI: what should be there and is not must not go unseen."""
    if IN_CI:
        pytest.fail(what)
    pytest.skip(what)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def redis_server_path() -> str | None:
    for candidate in (shutil.which("redis-server"), str(ROOT / ".run" / "bin" / "redis-server")):
        if candidate and Path(candidate).exists():
            return candidate
    return None


def redis_answers(url: str) -> bool:
    """Whether the Redis there takes commands."""
    with contextlib.closing(redis.Redis.from_url(url)) as client, contextlib.suppress(redis.RedisError):
        return bool(client.ping())
    return False


class RedisServer:
    """A redis-server of our own, with its append-only file: it can be killed and started again on its data."""

    def __init__(self, folder: Path, fsync: str = "always") -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._fsync = fsync
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        path = redis_server_path()
        assert path is not None
        self.process = subprocess.Popen(
            [path, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder),
             "--appendonly", "yes", "--appendfsync", self._fsync, "--save", ""],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        until(self.answers, what="redis-server")

    def answers(self) -> bool:
        return redis_answers(self.url)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def stop(self) -> None:
        self.kill()


class KafkaNode:
    """Apache Kafka of ../shared/kafka on a folder of its own: it can be killed and started again."""

    def __init__(self, folder: Path, properties: str = "") -> None:
        self.folder = folder
        self.port = free_port()
        self.bootstrap = f"127.0.0.1:{self.port}"
        self._properties = properties
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        extra = self.folder / "extra.properties"
        extra.write_text(self._properties)
        self.process = subprocess.Popen(
            [str(REAL_KAFKA), "--port", str(self.port), "--dir", str(self.folder / "data"), "--properties", str(extra)],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("ready"), f"Kafka did not start: {line!r}, see {self.folder}/data/server.log"

    def kill(self) -> None:
        """SIGKILL to the broker and its launcher: as a power cut."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        if self.process is not None and self.process.stdout is not None:
            self.process.stdout.close()

    stop = kill


@contextlib.contextmanager
def embedded_broker() -> Iterator[str]:
    """The address of the embedded broker in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "services.stack.broker"], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        yield line.split('"')[3]
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def kafka_threads() -> set[threading.Thread]:
    """Of kafka-python's clients in this process: one each, from when they are made until they are closed."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("kafka-io-")}
