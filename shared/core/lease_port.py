"""One holder among several processes, and what it remembers. Adapters: redis_lease.py, twin: memory_lease.py."""

from __future__ import annotations

from typing import Protocol


class Lease(Protocol):
    """Held by at most one process at a time, until it lets go or has not renewed for the time to live.

    With it goes one value that only the holder replaces, so that another can go on where the last one stopped. All
    methods raise Unavailable.
    """

    def hold(self) -> bool:
        """Take it if it is free, renew it if it is ours; whether we hold it now."""

    def release(self) -> None:
        """Let go, if it is ours: another need not wait for the time to live."""

    def read(self) -> bytes | None:
        """The value; None: there is none."""

    def write(self, value: bytes) -> bool:
        """Replace the value; False, and nothing is written, where we do not hold the lease any more."""
