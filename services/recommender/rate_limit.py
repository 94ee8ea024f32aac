"""How many requests a caller may make: a token bucket for each, in bounded memory."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address

_MOST_CALLERS = 50_000
"""Buckets kept, about 200 bytes each. Beyond that the one used least recently goes: its caller begins anew."""


class RateLimit:
    """``rate`` requests a second for each caller, ``burst`` at once. Not for use by several threads."""

    def __init__(
        self,
        rate: float,
        burst: int,
        most_callers: int = _MOST_CALLERS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rate = rate
        self._burst = float(burst)
        self._most = most_callers
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # caller -> (tokens, when)

    def take(self, caller: str) -> float:
        """0.0: go on. Else the seconds after which the caller may come again."""
        now = self._clock()
        tokens, when = self._buckets.get(caller, (self._burst, now))
        tokens = min(self._burst, tokens + (now - when) * self._rate)
        allowed = tokens >= 1.0
        self._buckets[caller] = (tokens - 1.0 if allowed else tokens, now)
        self._buckets.move_to_end(caller)
        if len(self._buckets) > self._most:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1.0 - tokens) / self._rate

    def __len__(self) -> int:
        return len(self._buckets)


def network_of(address: str) -> str:
    """Whom an address stands for: itself, or its /64 where it is IPv6, of which one caller has 2^64."""
    if ":" not in address:
        return address
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return f"{IPv6Address(int(parsed) >> 64 << 64)}/64"
    return str(parsed)
