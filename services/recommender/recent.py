"""How fresh states and rankings were of late, and who acted: a few samples of what the emitter saw, for the console."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping

from shared.core.ranking import StateUpdate

_SAMPLES = 256
_OF_A_ROUND = 16
_USERS = 8


class RecentUpdates:
    """Written by the emitter, read by another thread; its size is bounded."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._samples: deque[tuple[float, int, int]] = deque(maxlen=_SAMPLES)
        self._users: deque[str] = deque(maxlen=_USERS)

    def note(self, users: Mapping[str, StateUpdate | None], acknowledged_at: int) -> None:
        """A round: who was ranked and why, and when Kafka had their rankings (ms since the epoch)."""
        told = [(user, update) for user, update in users.items() if update is not None and update.arrived_at]
        now = self._clock()
        with self._lock:
            for user, update in users.items():
                if update is not None and update.forgotten and user in self._users:
                    self._users.remove(user)
            for user, update in told[:: max(1, len(told) // _OF_A_ROUND)]:
                in_redis, on_topic = update.written_at - update.arrived_at, acknowledged_at - update.arrived_at
                self._samples.append((now, max(0, in_redis), max(0, on_topic)))
                if user in self._users:
                    self._users.remove(user)
                self._users.append(user)

    def ages(self, seconds: float) -> tuple[list[int], list[int]]:
        """Milliseconds from an event's arrival at the broker to its state in Redis, and to its ranking on the topic."""
        since = self._clock() - seconds
        with self._lock:
            fresh = [sample for sample in self._samples if sample[0] >= since]
        return [sample[1] for sample in fresh], [sample[2] for sample in fresh]

    def users(self) -> list[str]:
        """Some who acted last, the latest first."""
        with self._lock:
            return list(reversed(self._users))
