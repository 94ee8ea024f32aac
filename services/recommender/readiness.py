"""Whether the recommender can do its work now: all of it, or the part that callers wait for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from shared.core.errors import DriftwoodError

Check = Callable[[], object]
"""Raises a DriftwoodError where the part does not work."""

_FRESH_S = 0.5
"""Probes that come closer together share an answer."""
_SERVING = frozenset({"redis"})
"""The checks without which no ranking can be given."""


class Readiness:
    """Asks Redis and Kafka when it is asked itself; whoever does not answer in time is not reachable."""

    def __init__(
        self, checks: Mapping[str, Check], notes: Callable[[], Mapping[str, object]], timeout_s: float = 2.0
    ) -> None:
        self._checks = checks
        self._notes = notes
        self._was_ready = False
        self._timeout_s = timeout_s
        self._pool = ThreadPoolExecutor(max_workers=max(1, len(checks)), thread_name_prefix="ready")
        self._running: dict[str, Future[str]] = {}
        self._lock = threading.Lock()
        self._known: tuple[float, dict[str, str]] | None = None

    def __call__(self, for_traffic: bool = False) -> tuple[bool, dict[str, object]]:
        """(ready, what is known of each part); blocks for the timeout at most.

        for_traffic: whether rankings may be asked for: once all parts were well, Redis suffices. So a new process whose
        settings are wrong never takes over, and an outage of the rest takes no rankings away.
        """
        with self._lock:
            if self._known is None or time.monotonic() - self._known[0] > _FRESH_S:
                parts = self._ask()
                # The time after it: whoever waited for the lock shares the answer.
                self._known = (time.monotonic(), parts)
            parts = self._known[1]
            well = {name for name, result in parts.items() if result == "ok"}
            ready = well == set(parts)
            self._was_ready |= ready
            if for_traffic and self._was_ready:
                ready = well >= _SERVING
        return ready, {**parts, **self._notes()}

    def _ask(self) -> dict[str, str]:
        deadline = time.monotonic() + self._timeout_s
        for name, check in self._checks.items():
            held = self._running.get(name)
            if held is None or held.done():  # one that hangs is not asked twice
                self._running[name] = self._pool.submit(_outcome, check)
        results: dict[str, str] = {}
        for name, future in self._running.items():
            try:
                results[name] = future.result(timeout=max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                results[name] = f"no answer within {self._timeout_s:g} s"
        return results

    def close(self) -> None:
        """Ask no more."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _outcome(check: Check) -> str:
    try:
        check()
    except DriftwoodError as error:
        return str(error) or type(error).__name__
    return "ok"
