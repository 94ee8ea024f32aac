"""Services as processes with exactly these settings: what they say, and what /readyz says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx

from tests.servers import ROOT, free_port

_PORTS = {"consumer": "CONSUMER_PORT", "recommender": "HTTP_PORT", "retrainer": "RETRAINER_PORT"}
_HOSTS = {"CONSUMER_HOST": "127.0.0.1", "HTTP_HOST": "127.0.0.1", "RETRAINER_HOST": "127.0.0.1"}


class Services:
    """``end`` them."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._folder = folder
        self._ports = {name: free_port() for name in _PORTS}
        mine = {k: v for k, v in os.environ.items() if not k.startswith(("KAFKA_", "REDIS_", "TOPIC_", "HTTP_"))}
        own = {
            "MODEL_URI": str(folder / "models"),
            "SESSION_LOG_URI": str(folder / "session-log"),
            "TRAIN_DIR": str(folder / "training"),
            "TRENDING_REFRESH_MS": "100",
            "CONSUMER_COMMIT_MS": "200",
        }
        ports = {_PORTS[name]: str(port) for name, port in self._ports.items()}
        self._environment = {**mine, **own, **_HOSTS, **ports, **environment}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        with (self._folder / f"{name}.log").open("wb") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", f"services.{name}"], cwd=ROOT, env=self._environment, stdout=log, stderr=log
            )

    def address(self, name: str) -> str:
        return f"http://127.0.0.1:{self._ports[name]}"

    def readyz(self, name: str) -> dict[str, Any]:
        try:
            return dict(httpx.get(f"{self.address(name)}/readyz", timeout=10).json())
        except httpx.TransportError:
            return {}

    def exit_code(self, name: str, seconds: float = 60.0) -> int:
        return self._processes[name].wait(seconds)

    def end(self) -> str:
        """Kill all that still runs; everything that was said."""
        for process in self._processes.values():
            process.kill()
            process.wait()
        return "".join(path.read_text() for path in sorted(self._folder.glob("*.log")))
