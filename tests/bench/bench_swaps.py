"""Model swaps under load: requests that failed (must be 0), and latency during swaps against that between them.

Consumer and recommender as processes, 50,000 items at width 128, a constant rate of events (some on items that no
model knows) and of requests. Then the registry's pointer moves 20 times, and back and forth between three versions:
each time the model is read, checked and laid out anew, all rankings in memory become void and states are rebuilt, by
whoever meets them first and by the sweep. Alone: ``make bench ARGS=swaps``, or ``python -m tests.bench.bench_swaps``.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shared.adapters.kafka_reader import OffsetReader
from shared.adapters.redis_store import RedisStateStore
from shared.adapters.registry import FileModelRegistry
from shared.adapters.settings import KafkaSettings, RedisSettings
from shared.core.state import decode_state
from tests.bench.bench_http import EVENTS_PER_S, QUICK, Size
from tests.bench.world import item_name, metric, model_in_use, process, publish_synthetic, resident_mb
from tests.servers import ROOT, RedisServer, embedded_broker, free_port, until

SWAPS = 20
EVERY_S = 9.0
"""From one swap to the next."""
DURING_S = 3.0
"""From the pointer's move on: noticing, loading, and the first states rebuilt."""
RATE = 500
"""Requests a second: what two cores answer along with everything else that runs here."""
NEW_ITEMS = 20
VERSIONS = 3
SWEEP_DELAY_S = 2.0


def run(quick: bool = False, rate: int = RATE) -> dict[str, Any]:
    """See the module. rate: requests a second; a machine that cannot answer so many measures its own queue."""
    size = QUICK if quick else Size()
    with tempfile.TemporaryDirectory(prefix="driftwood-bench-") as name:
        folder = Path(name)
        try:
            return _run(folder, size, 5.0 if quick else EVERY_S, rate)
        except AssertionError:
            for log in sorted(folder.glob("*.log")):
                sys.stderr.write(f"--- {log.name}\n{log.read_text()[-2000:]}\n")
            raise


def _run(folder: Path, size: Size, every_s: float, rate: int) -> dict[str, Any]:
    registry = _versions(folder / "models", size)
    paths = folder / "users"
    paths.write_text("\n".join(f"/v1/users/u{n * 7919 % size.users}/recommendations" for n in range(size.users)))
    redis = RedisServer(folder, fsync="everysec")
    redis.start()
    with contextlib.closing(contextlib.ExitStack()) as stack:
        stack.callback(redis.stop)
        env = dict(os.environ) | {
            "KAFKA_BOOTSTRAP_SERVERS": stack.enter_context(embedded_broker()), "KAFKA_API_VERSION": "2.0",
            "REDIS_URL": redis.url, "MODEL_URI": str(folder / "models"), "LOG_FORMAT": "text",
            "CONSUMER_HOST": "127.0.0.1", "CONSUMER_PORT": str(free_port()), "HTTP_HOST": "127.0.0.1",
            "HTTP_PORT": str(free_port()), "SWEEP_DELAY_S": str(SWEEP_DELAY_S),
        }  # fmt: skip
        consumer, http = (f"http://127.0.0.1:{env[name]}" for name in ("CONSUMER_PORT", "HTTP_PORT"))
        feed = ["--users", str(size.users), "--items", str(size.items + NEW_ITEMS)]
        command = [sys.executable, "-m", "tests.bench.event_feed", *feed, "--count", str(3 * size.users)]
        subprocess.run(command, cwd=ROOT, env=env, check=True)
        services = [stack.enter_context(process("services.consumer", env, log=folder / "consumer.log"))]
        applied = 'driftwood_consumer_events_total{outcome="applied"}'
        until(lambda: metric(consumer, applied) >= 3 * size.users, 180, "states")
        services.append(stack.enter_context(process("services.recommender", env, log=folder / "recommender.log")))
        until(lambda: model_in_use(http) == "1", 60, "recommender")
        until(lambda: metric(http, "driftwood_emitted_total") >= size.users, 180, "the backlog of emission")
        # New items are a few of many: chosen so often that they are all ranked from the start of a version's time on.
        new = ["--users", str(size.users), "--items", str(NEW_ITEMS), "--first-item", str(size.items)]
        with (
            process("tests.bench.event_feed", env, *feed, "--rate", str(EVENTS_PER_S), log=folder / "feed.log"),
            process("tests.bench.event_feed", env, *new, "--rate", "50", log=folder / "new.log"),
        ):
            memory = [resident_mb(service.pid) for service in services]
            times, ranked, report, answered = _swaps(registry, http, consumer, folder, paths, every_s, rate)
        results = _summary(times, report, answered, every_s)
        store = RedisStateStore(RedisSettings(redis_url=redis.url))
        stack.callback(store.close)
        users = [f"u{n}" for n in range(size.users)]
        results["new_items_ranked"] = {"of": NEW_ITEMS, "median_before_a_swap": float(np.median(ranked))}
        results["memory_mb"] = {
            name: {"before": before, "after": resident_mb(service.pid)}
            for name, service, before in zip(("consumer", "recommender"), services, memory, strict=True)
        }
        results["events"] = _all_applied(store, users, env)
        results["states_of_the_last_model"] = _swept(store, users, registry)
    return results


def _versions(uri: Path, size: Size) -> FileModelRegistry:
    """Three versions of one catalogue; the first is current."""
    registry = publish_synthetic(uri, size.items, size.width, item_name)
    first = registry.load("1")
    for seed in range(2, VERSIONS + 1):
        g = torch.Generator().manual_seed(seed)
        other = {n: w + 0.02 * torch.randn(w.shape, generator=g) for n, w in first.weights.items()}
        registry.publish(other, first.items, make_current=False)
    return registry


def _swaps(
    registry: FileModelRegistry, http: str, consumer: str, folder: Path, paths: Path, every_s: float, rate: int
) -> tuple[list[tuple[float, float]], list[float], dict[str, float], np.ndarray]:
    """[(moved, both have it)] by time.perf_counter(), new items ranked before each swap, the load generator's report,
    (due, latency) of all answers."""
    record = folder / "answers.npy"
    load = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.http_load", "--address", http.removeprefix("http://"),
         "--paths", str(paths), "--rate", str(rate), "--seconds", str(every_s * (SWAPS + 1)), "--record", str(record)],
        cwd=ROOT, stdout=subprocess.PIPE,
    )  # fmt: skip
    times: list[tuple[float, float]] = []
    ranked: list[float] = []
    began = time.perf_counter()
    for n in range(1, SWAPS + 1):
        time.sleep(max(0.0, began + n * every_s - time.perf_counter()))
        version = str(n % VERSIONS + 1)
        ranked.append(metric(http, "driftwood_new_items_ranked"))
        moved = time.perf_counter()
        registry.set_current(version)
        until(lambda version=version: model_in_use(http) == version and model_in_use(consumer) == version, 30, "swap")  # type: ignore[misc]
        times.append((moved, time.perf_counter()))
    out, _ = load.communicate(timeout=every_s + 60)
    return times, ranked, json.loads(out), np.load(record)


def _summary(
    times: list[tuple[float, float]], report: Mapping[str, float], answered: np.ndarray, every_s: float
) -> dict[str, Any]:
    due, latency = answered[:, 0], answered[:, 1] * 1000
    moved = np.array([start for start, _ in times])
    last = np.searchsorted(moved, due) - 1
    since = np.where(last >= 0, due - moved[np.maximum(last, 0)], np.inf)
    during = since < DURING_S
    inside = (due > moved[0] - every_s / 2) & (due < moved[-1] + every_s)  # the first seconds warm up
    parts = {"during": latency[inside & during], "between": latency[inside & ~during]}
    results: dict[str, Any] = {
        "swaps": len(times),
        "failed_requests": int(report["failed"]),
        "not_answered_by_the_end": int(report["errors"] - report["failed"]),
        "answers": int(report["answers"]),
        "swap_s_median": round(float(np.median([end - start for start, end in times])), 2),
        "swap_s_max": round(max(end - start for start, end in times), 2),
    }
    for name, values in parts.items():
        quantiles = {f"p{q}_ms": round(float(np.percentile(values, q)), 2) for q in (50, 90, 99)}
        results[name] = {**quantiles, "max_ms": round(float(values.max()), 2), "answers": len(values)}
    results["p99_ratio"] = round(results["during"]["p99_ms"] / results["between"]["p99_ms"], 2)
    return results


def _all_applied(store: RedisStateStore, users: list[str], env: Mapping[str, str]) -> int:
    """Waits until every event of the topic is in a state, once; returns how many there are."""
    kafka = KafkaSettings(kafka_bootstrap_servers=env["KAFKA_BOOTSTRAP_SERVERS"], kafka_api_version="2.0")
    reader = OffsetReader(kafka)
    written = sum(reader.end_offsets(kafka.topic_interactions).values())
    reader.close()
    until(
        lambda: _settled(lambda: sum(decode_state(v).events for v in store.read(users)) == written), 120, "all events"
    )
    return written


def _settled(probe: Callable[[], bool]) -> bool:
    """Asks, and lets the services work for a moment where it is not so yet."""
    found = probe()
    if not found:
        time.sleep(0.5)
    return found


def _swept(store: RedisStateStore, users: list[str], registry: FileModelRegistry) -> dict[str, Any]:
    """Waits until the sweep has gone over all states."""
    fingerprint = registry.manifest(registry.current() or "").fingerprint

    def share() -> float:
        return float(np.mean([decode_state(value).fingerprint == fingerprint for value in store.read(users)]))

    before, began = share(), time.monotonic()
    until(lambda: _settled(lambda: share() == 1.0), 180, "the sweep")
    return {"share_at_first": round(before, 3), "swept_after_s": round(time.monotonic() - began, 1)}


def main() -> None:
    """Print what ``run`` measured."""
    sys.stdout.write(json.dumps(run("--quick" in sys.argv), indent=2) + "\n")


if __name__ == "__main__":
    main()
