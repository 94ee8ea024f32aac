"""Signals as something to wait on: a stop request or a child's end wakes the main loop at once."""

from __future__ import annotations

import os
import select
import signal
import time
from types import FrameType, TracebackType

_STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_ONE_WISH_S = 2.0


class Signals:
    """While entered, stop signals are counted instead of ending the process. For the main thread only."""

    def __init__(self) -> None:
        self.stops = 0
        self._terminated_at = float("-inf")
        self._before: dict[int, signal.Handlers | object] = {}
        self._read, self._write = -1, -1

    def __enter__(self) -> Signals:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        self._wakeup_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for signum in _STOP:
            self._before[signum] = signal.signal(signum, self._count)
        self._before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, _ignore)  # a handler, so that it wakes
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._read)
        os.close(self._write)

    def wait(self, seconds: float) -> None:
        """Return after so many seconds, or sooner when any signal has come."""
        ready, _, _ = select.select([self._read], [], [], max(0.0, seconds))
        if ready:
            os.read(self._read, 4096)

    def _count(self, signum: int, frame: FrameType | None) -> None:
        # A group is often told at once, and make passes on what it got: two SIGTERM together are one wish.
        now = time.monotonic()
        if signum == signal.SIGINT or now - self._terminated_at > _ONE_WISH_S:
            self.stops += 1
        if signum != signal.SIGINT:
            self._terminated_at = now


def _ignore(signum: int, frame: FrameType | None) -> None:
    pass
