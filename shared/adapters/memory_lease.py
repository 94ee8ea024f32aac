"""A lease in memory: the twin of redis_lease.py."""

from __future__ import annotations

import time
from collections.abc import Callable

from shared.core.errors import Unavailable


class LeaseServer:
    """What several MemoryLease share. ``available = False`` makes every call raise Unavailable."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.available = True
        self.holder: MemoryLease | None = None
        self.until = 0.0
        self.value: bytes | None = None


class MemoryLease:
    """The Lease port; seconds are the server's clock's."""

    def __init__(self, server: LeaseServer, ttl_s: float) -> None:
        self._server, self._ttl_s = server, ttl_s

    def hold(self) -> bool:
        """See Lease."""
        if self._holder() not in (None, self):
            return False
        self._server.holder, self._server.until = self, self._server.clock() + self._ttl_s
        return True

    def release(self) -> None:
        """See Lease."""
        if self._holder() is self:
            self._server.holder = None

    def read(self) -> bytes | None:
        """See Lease."""
        self._holder()
        return self._server.value

    def write(self, value: bytes) -> bool:
        """See Lease."""
        if self._holder() is not self:
            return False
        self._server.value = value
        return True

    def _holder(self) -> MemoryLease | None:
        if not self._server.available:
            raise Unavailable("the lease server in memory was switched off")
        return self._server.holder if self._server.clock() < self._server.until else None
