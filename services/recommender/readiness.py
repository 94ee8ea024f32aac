"""Whether the recommender can do its work now."""

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


class Readiness:
    """Asks Redis and Kafka when it is asked itself; whoever does not answer in time is not reachable."""

    def __init__(
        self, checks: Mapping[str, Check], notes: Callable[[], Mapping[str, object]], timeout_s: float = 2.0
    ) -> None:
        self._checks = checks
        self._notes = notes
        self._timeout_s = timeout_s
        self._pool = ThreadPoolExecutor(max_workers=max(1, len(checks)), thread_name_prefix="ready")
        self._running: dict[str, Future[str]] = {}
        self._lock = threading.Lock()
        self._known: tuple[float, bool, dict[str, object]] | None = None

    def __call__(self) -> tuple[bool, dict[str, object]]:
        """(ready, what is known of each part); blocks for the timeout at most."""
        with self._lock:
            if self._known is None or time.monotonic() - self._known[0] > _FRESH_S:
                results = self._ask()
                ready = all(result == "ok" for result in results.values())
                self._known = (time.monotonic(), ready, dict(results))
            _, ready, parts = self._known
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
