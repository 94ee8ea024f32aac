"""What a deployment needs memory for: bytes a user in Redis, and megabytes a service by items of its model.

Redis: 100,000 users (and half as many, for the slope) written as the consumer writes them, with 32 recent items of
nine digits at width 128; used_memory tells. Services: consumer and recommender as processes with a synthetic model of
10,000, 100,000 and a million items: resident memory when ready, after six swaps, and the most while the next model was
loaded beside the one in use. Alone: ``make bench ARGS=sizes``.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from shared.adapters.redis_store import RedisStateStore
from shared.adapters.registry import FileModelRegistry
from shared.adapters.settings import ConsumerSettings, RedisSettings
from shared.core.ports import StateWrite
from shared.core.state import NO_TOKEN, UserState, encode_state
from tests.bench.world import WIDTH, item_number, model_in_use, process, publish_synthetic, resident_mb, say
from tests.servers import RedisServer, embedded_broker, free_port, until

USERS = 100_000
ITEMS = (10_000, 100_000, 1_000_000)
SWAPS = 6
WANTED_BYTES = 512
PORTS = {"consumer": "CONSUMER_PORT", "recommender": "HTTP_PORT"}


def user_value(n: int, event_ids: bool) -> bytes:
    """The value of a user with as many recent items as are kept."""
    rng = np.random.default_rng(n)
    state = UserState(hidden=rng.normal(size=WIDTH).astype(np.float16).tobytes(), fingerprint=1 << 60)
    state.last_ts, state.events = 1_700_000_000_000 + n, 40
    state.mark_applied(n % 12, 1, 1_000_000 + n)
    limit = ConsumerSettings().recent_items
    for item in rng.integers(1_000_000, size=limit).tolist():
        state.push_item(item_number(item), limit)
        if event_ids:
            state.remember_event_id(f"{n}-{item}")
    return encode_state(state)


def redis_bytes(folder: Path, users: int) -> dict[str, float]:
    """Of a redis-server of our own."""
    server = RedisServer(folder, fsync="no")
    server.start()
    try:
        store = RedisStateStore(RedisSettings(redis_url=server.url))
        used = [_used_memory(store)]
        for first in (0, users // 2):
            for at in range(first, first + users // 2, 1000):
                store.write([StateWrite(f"user-{n:09d}", NO_TOKEN, user_value(n, False)) for n in range(at, at + 1000)])
            used.append(_used_memory(store))
        store.close()
    finally:
        server.stop()
    return {
        "value_bytes": len(user_value(1, False)),
        "value_bytes_with_event_ids": len(user_value(1, True)),
        "key_bytes": len("dw:u:user-000000000"),
        "used_memory_per_user": round((used[2] - used[0]) / users, 1),
        "of_the_second_half": round((used[2] - used[1]) / (users // 2), 1),
    }


def _used_memory(store: RedisStateStore) -> int:
    return int(store._redis.info("memory")["used_memory"])  # type: ignore[arg-type, index]


def _service_mb(folder: Path, redis: RedisServer, bootstrap: str, items: int) -> dict[str, Any]:
    models = folder / f"models-{items}"
    registry = publish_synthetic(models, items)
    _second_version(registry)
    env = dict(os.environ) | {
        "KAFKA_BOOTSTRAP_SERVERS": bootstrap, "KAFKA_API_VERSION": "2.0", "REDIS_URL": redis.url,
        "MODEL_URI": str(models), "LOG_LEVEL": "WARNING", "CONSUMER_HOST": "127.0.0.1", "HTTP_HOST": "127.0.0.1",
    }  # fmt: skip
    found: dict[str, Any] = {"file_mb": _megabytes((models / "versions" / "1").iterdir())}
    for service, port in PORTS.items():
        registry.set_current("1")
        base = f"http://127.0.0.1:{free_port()}"
        own = env | {port: base.rpartition(":")[2]}
        with process(f"services.{service}", own, log=folder / f"{service}.log") as started:
            until(lambda base=base: model_in_use(base) == "1", 120, f"{service} with {items:,} items")  # type: ignore[misc]
            ready = _settled_mb(started.pid)
            for n in range(1, SWAPS + 1):
                version = str(n % 2 + 1)
                registry.set_current(version)
                until(lambda b=base, v=version: model_in_use(b) == v, 120, "swap")  # type: ignore[misc]
            found[service] = {
                "ready_mb": ready,
                "after_swaps_mb": _settled_mb(started.pid),
                "most_mb": resident_mb(started.pid, "VmHWM"),
            }
    return found


def _settled_mb(pid: int) -> float:
    """Resident memory once it stands still: the new version is told a moment before the old one has gone."""
    readings = [resident_mb(pid)]

    def stands_still() -> bool:
        time.sleep(1)
        readings.append(resident_mb(pid))
        return abs(readings[-1] - readings[-2]) < 0.01 * readings[-1]

    until(stands_still, 60, "memory to stand still")
    return readings[-1]


def _second_version(registry: FileModelRegistry) -> None:
    first = registry.load("1")
    registry.publish({n: w * 1.01 for n, w in first.weights.items()}, first.items, make_current=False)


def _megabytes(files: Iterable[Path]) -> float:
    return round(sum(file.stat().st_size for file in files) / 1e6, 1)


def run(quick: bool = False) -> dict[str, Any]:
    """Prints one line for Redis and one for each size of a catalogue."""
    with tempfile.TemporaryDirectory(prefix="driftwood-bench-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        (folder / "users").mkdir()
        results: dict[str, Any] = {"redis": (user := redis_bytes(folder / "users", USERS // 5 if quick else USERS))}
        say(
            f"redis: a value of {user['value_bytes']} bytes (wanted at most {WANTED_BYTES}; "
            f"{user['value_bytes_with_event_ids']} where events carry ids) and a key of {user['key_bytes']}: "
            f"{user['used_memory_per_user']} bytes of used_memory a user, {user['of_the_second_half']} for each more"
        )
        redis = RedisServer(folder, fsync="everysec")
        redis.start()
        stack.callback(redis.stop)
        bootstrap = stack.enter_context(embedded_broker())
        for items in ITEMS[:2] if quick else ITEMS:
            results[str(items)] = found = _service_mb(folder, redis, bootstrap, items)
            both = ", ".join(
                f"{service} {found[service]['ready_mb']:.0f} MB ready, {found[service]['after_swaps_mb']:.0f} after "
                f"{SWAPS} swaps, {found[service]['most_mb']:.0f} at most"
                for service in PORTS
            )
            say(f"memory, {items:,} items at width {WIDTH} ({found['file_mb']:.0f} MB on disk): {both}")
    return results
