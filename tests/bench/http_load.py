"""A load generator for HTTP, in a process of its own: ``python -m tests.bench.http_load --help``.

Open loop (``--rate``): requests are due at fixed times, whatever became of those before, and a latency counts from
the time its request was due. So a server that stalls is charged for all who would have come meanwhile (what wrk2
calls the omission that is coordinated). Closed loop (``--rate 0``): each connection asks again when it is answered.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import deque
from pathlib import Path
from typing import cast

import numpy as np
import uvloop


class Connection(asyncio.Protocol):
    """One keep-alive connection, one request at a time."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._transport: asyncio.Transport | None = None
        self._due = 0.0
        self._left = -1
        self._head = b""
        self._ok = False
        self.busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance
        self._load.idle(self)

    def ask(self, request: bytes, due: float) -> None:
        assert self._transport is not None
        self._due, self._left, self._head, self.busy = due, -1, b"", True
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        if self._left < 0:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self._head[:end].lower()
            self._ok = head.startswith(b"http/1.1 200")
            at = head.index(b"content-length:") + 15
            self._left = int(head[at:].split(b"\r", 1)[0]) - (len(self._head) - end - 4)
        else:
            self._left -= len(data)
        if self._left <= 0:
            self.busy = False
            self._load.answered(self, self._due, self._ok)

    def connection_lost(self, error: Exception | None) -> None:
        if self.busy:
            self._load.answered(None, self._due, False)


class Load:
    """One run: who waits, what came back when."""

    def __init__(self, requests: list[bytes], rate: float, seconds: float) -> None:
        self._requests = requests
        self._rate = rate
        self._seconds = seconds
        self._idle: deque[Connection] = deque()
        self._backlog: deque[tuple[bytes, float]] = deque()
        self._next = 0
        self._running = False
        self._sent = 0
        self.latencies: list[float] = []
        self.dues: list[float] = []
        """When each of these requests was due, by time.perf_counter()."""
        self.errors = 0

    def idle(self, connection: Connection) -> None:
        if self._backlog:
            connection.ask(*self._backlog.popleft())
        elif self._running and not self._rate and time.perf_counter() < self._end:
            self._sent += 1
            connection.ask(self._request(), time.perf_counter())
        else:
            self._idle.append(connection)

    def answered(self, connection: Connection | None, due: float, ok: bool) -> None:
        if ok:
            self.latencies.append(time.perf_counter() - due)
            self.dues.append(due)
        else:
            self.errors += 1
        if connection is not None:
            self.idle(connection)

    def _request(self) -> bytes:
        request = self._requests[self._next]
        self._next = (self._next + 1) % len(self._requests)
        return request

    async def run(self, host: str, port: int, connections: int) -> dict[str, float]:
        loop = asyncio.get_running_loop()
        for _ in range(connections):
            await loop.create_connection(lambda: Connection(self), host, port)
        self._running = True
        began = time.perf_counter()
        self._end = began + self._seconds
        if self._rate:
            await self._open_loop(began)
        else:
            waiting, self._idle = list(self._idle), deque()
            for connection in waiting:
                self.idle(connection)
            await asyncio.sleep(self._seconds)
        deadline = time.perf_counter() + 10
        while len(self.latencies) + self.errors < self._sent and time.perf_counter() < deadline:
            await asyncio.sleep(0.01)
        return self.report(time.perf_counter() - began)

    async def _open_loop(self, began: float) -> None:
        while (now := time.perf_counter()) < self._end:
            while self._sent < (now - began) * self._rate:
                due = began + self._sent / self._rate
                self._sent += 1
                if self._idle:
                    self._idle.popleft().ask(self._request(), due)
                else:
                    self._backlog.append((self._request(), due))
            await asyncio.sleep(max(0.0, began + self._sent / self._rate - time.perf_counter()))

    def report(self, took: float) -> dict[str, float]:
        ms = np.array(self.latencies or [float("nan")]) * 1000
        p50, p90, p99 = np.percentile(ms, [50, 90, 99])
        return {
            "p50_ms": round(float(p50), 3),
            "p90_ms": round(float(p90), 3),
            "p99_ms": round(float(p99), 3),
            "max_ms": round(float(ms.max()), 3),
            "per_second": round(len(self.latencies) / max(took, 1e-9), 1),
            "answers": len(self.latencies),
            "errors": self._sent - len(self.latencies),
            "failed": self.errors,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", required=True, help="host:port")
    parser.add_argument("--paths", type=Path, required=True, help="file with one path a line, asked for in turn")
    parser.add_argument("--rate", type=float, default=1000, help="requests a second; 0: closed loop")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--record", type=Path, help="file for (due, latency) of each answer, seconds, .npy")
    options = parser.parse_args()
    host, _, port = options.address.rpartition(":")
    head = f" HTTP/1.1\r\nHost: {options.address}\r\n\r\n"
    requests = [f"GET {path}{head}".encode() for path in options.paths.read_text().split()]
    load = Load(requests, options.rate, options.seconds)
    report = uvloop.run(load.run(host, int(port), options.connections))
    if options.record:
        np.save(options.record, np.array([load.dues, load.latencies]).T)
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
