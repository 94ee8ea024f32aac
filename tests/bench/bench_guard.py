"""What the guard before the HTTP interface costs each request: ``python -m tests.bench.bench_guard``.

The application behind it answers nothing, so what is left is the guard alone, in microseconds of one core; median of
seven runs of each, in turn.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import statistics
import time

from prometheus_client import CollectorRegistry

from services.recommender.api_keys import KeyRing, keys_of_setting
from services.recommender.guard import App, Guard, HttpRules
from services.recommender.metrics import RecommenderMetrics
from services.recommender.rate_limit import RateLimit

_REQUESTS = 20_000
_RUNS = 7


async def _nothing(scope, receive, send) -> None:
    """The application."""


def _scopes(key: str) -> list[dict[str, object]]:
    headers = [(b"host", b"localhost:8080"), (b"user-agent", b"bench"), (b"accept", b"*/*")]
    headers.append((b"authorization", b"Bearer " + key.encode()))
    path = "/v1/users/ada/recommendations"
    return [
        {"type": "http", "method": "GET", "path": path, "headers": headers, "client": (f"10.0.{n % 200}.1", 1)}
        for n in range(_REQUESTS)
    ]


async def _seconds(app: App, scopes: list[dict[str, object]]) -> float:
    began = time.process_time()
    for scope in scopes:
        await app(scope, None, None)  # type: ignore[arg-type]
    return time.process_time() - began


def main() -> None:
    keys = [secrets.token_urlsafe(32) for _ in range(100)]
    metrics = RecommenderMetrics(CollectorRegistry())

    def guard(count: int, rate: bool) -> App:
        ring = KeyRing(keys_of_setting(",".join(keys[:count])), needed=count > 0)
        return Guard(_nothing, HttpRules(ring, RateLimit(1e9, 1_000_000) if rate else None), metrics)

    cases: dict[str, App] = {
        "no guard": _nothing, "off": guard(0, False), "rate": guard(0, True), "1 key": guard(1, False),
        "10 keys": guard(10, False), "10 keys, rate": guard(10, True), "100 keys": guard(100, False),
    }  # fmt: skip
    scopes = _scopes(keys[0])
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(_RUNS):
        for name, app in cases.items():
            times[name].append(asyncio.run(_seconds(app, scopes)) / _REQUESTS * 1e6)
    base = statistics.median(times["no guard"])
    print(json.dumps({name: round(statistics.median(t) - base, 2) for name, t in times.items() if name != "no guard"}))


if __name__ == "__main__":
    main()
