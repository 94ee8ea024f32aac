"""HTTP rankings: latency at 1,000 requests a second while states change, and the most that is answered.

Everything is started here: Redis, the embedded broker, consumer and recommender as processes, a model with random
weights (50,000 items, width 128), events at a constant rate, and the load generator. Where ../shared/peers is there,
serenade (bol.com's session recommender, in Rust) gets the same load in the same run.
Alone: ``python -m tests.bench.bench_http [--quick]``
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.world import get, item_name, metric, model_in_use, process, publish_synthetic
from tests.servers import DATA, ROOT, RedisServer, embedded_broker, free_port, until

RATE = 1000
EVENTS_PER_S = 200
PEER = ROOT.parent / "shared" / "peers" / "serenade"
PEER_LOG = DATA / "rsc15_64_train.parquet"


@dataclass(frozen=True)
class Size:
    """How much of it is done."""

    items: int = 50_000
    width: int = 128
    users: int = 20_000
    seconds: float = 15.0


QUICK = Size(users=2_000, seconds=4.0)


def load(address: str, paths: Path, rate: float, seconds: float) -> dict[str, float]:
    """One run of the load generator."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.http_load", "--address", address, "--paths", str(paths),
         "--rate", str(rate), "--seconds", str(seconds)],
        cwd=ROOT, stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    return dict(json.loads(done.stdout))


def ours(folder: Path, size: Size) -> dict[str, Any]:
    """Rankings in memory where state and model did not change (as configured by default), then none in memory."""
    publish_synthetic(folder / "models", size.items, size.width, item_name)
    users = folder / "users"
    users.write_text("\n".join(f"/v1/users/u{n * 7919 % size.users}/recommendations" for n in range(size.users)))
    redis = RedisServer(folder, fsync="everysec")
    redis.start()
    results: dict[str, Any] = {}
    with contextlib.closing(contextlib.ExitStack()) as stack:
        stack.callback(redis.stop)
        bootstrap = stack.enter_context(embedded_broker())
        env = dict(os.environ)
        env |= {
            "KAFKA_BOOTSTRAP_SERVERS": bootstrap, "KAFKA_API_VERSION": "2.0", "REDIS_URL": redis.url,
            "MODEL_URI": str(folder / "models"), "LOG_FORMAT": "text",
            "CONSUMER_HOST": "127.0.0.1", "CONSUMER_PORT": str(free_port()), "HTTP_HOST": "127.0.0.1",
        }  # fmt: skip
        consumer = f"http://127.0.0.1:{env['CONSUMER_PORT']}"
        feed = ["--users", str(size.users), "--items", str(size.items)]
        command = [sys.executable, "-m", "tests.bench.event_feed", *feed, "--count", str(3 * size.users)]
        subprocess.run(command, cwd=ROOT, env=env, check=True)
        stack.enter_context(process("services.consumer", env, log=folder / "consumer.log"))
        until(lambda: get(f"{consumer}/readyz"), 60, "consumer")
        applied = 'driftwood_consumer_events_total{outcome="applied"}'
        until(lambda: metric(consumer, applied) >= 3 * size.users, 120, "states")
        for name, more in (("default", {}), ("nothing_cached", {"RANK_CACHE_USERS": "0"})):
            results[name] = _measured(folder, env | more | {"HTTP_PORT": str(free_port())}, users, feed, size)
    return results


def _measured(folder: Path, env: dict[str, str], users: Path, feed: list[str], size: Size) -> dict[str, Any]:
    address = f"127.0.0.1:{env['HTTP_PORT']}"
    base = f"http://{address}"
    with process("services.recommender", env, log=folder / "recommender.log"):
        until(lambda: model_in_use(base) == "1", 60, "recommender")
        emitted = "driftwood_emitted_total"
        if "RANK_CACHE_USERS" not in env:
            until(lambda: metric(base, emitted) >= size.users, 120, "the backlog of emission")
            until(lambda: _still(base, emitted), 120, "the end of that backlog")
        with process("tests.bench.event_feed", env, *feed, "--rate", str(EVENTS_PER_S), log=folder / "feed.log"):
            until(lambda: metric(base, emitted), 60, "emission")
            load(address, users, RATE, 2.0)  # warm-up
            hit, miss = (f'driftwood_ranking_cache_total{{outcome="{o}"}}' for o in ("hit", "miss"))
            before = metric(base, hit), metric(base, miss), metric(base, emitted)
            constant = load(address, users, RATE, size.seconds)
            after = metric(base, hit), metric(base, miss), metric(base, emitted)
            hits, misses, rankings = (b - a for a, b in zip(before, after, strict=True))
            most = load(address, users, 0, size.seconds / 2)
    return {
        "at_1000_per_second": constant,
        "most_per_second": most["per_second"],
        "cache_hit_share": round(hits / max(1.0, hits + misses), 3),
        "events_per_second": EVENTS_PER_S,
        "emitted_per_second": round(rankings / size.seconds, 1),
    }


def _still(base: str, name: str) -> bool:
    """Whether a counter stands still for longer than the emission of a full round takes."""
    before = metric(base, name)
    time.sleep(5)
    return metric(base, name) == before


def peer(folder: Path, size: Size) -> dict[str, Any] | None:
    """serenade on the rsc15_64 log; None where it is not there."""
    if not (PEER.exists() and PEER_LOG.exists()):
        return None
    import polars as pl

    log = pl.read_parquet(PEER_LOG)
    items = log["item_id"].n_unique()
    port = free_port()
    started = subprocess.Popen(
        [str(PEER), str(PEER_LOG), "--port", str(port)], stdout=subprocess.PIPE, text=True, start_new_session=True,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},  # its python3 needs polars
    )  # fmt: skip
    try:
        assert started.stdout is not None
        line = started.stdout.readline()
        if not line.startswith("ready"):
            return None
        paths = folder / "peer"
        form = "/v1/recommend?session_id={s}&user_consent=true&item_id={i}"
        paths.write_text("\n".join(form.format(s=n % size.users, i=1 + n * 7919 % items) for n in range(size.users)))
        address = f"127.0.0.1:{port}"
        load(address, paths, RATE, 2.0)
        constant = load(address, paths, RATE, size.seconds)
        most = load(address, paths, 0, size.seconds / 2)
        return {"items": items, "at_1000_per_second": constant, "most_per_second": most["per_second"]}
    finally:
        os.killpg(started.pid, signal.SIGTERM)
        started.wait()
        if started.stdout is not None:
            started.stdout.close()


def run(quick: bool = False) -> dict[str, Any]:
    """All of it. Ratios are ours to serenade's; above 1 for latency is slower, below 1 for the most is less."""
    size = QUICK if quick else Size()
    with tempfile.TemporaryDirectory(prefix="driftwood-bench-") as name:
        folder = Path(name)
        results: dict[str, Any] = {"items": size.items, "width": size.width, "users": size.users}
        try:
            results |= ours(folder, size)
        except AssertionError:
            for log in sorted(folder.glob("*.log")):
                sys.stderr.write(f"--- {log.name}\n{log.read_text()[-2000:]}\n")
            raise
        other = peer(folder, size)
    if other is not None:
        mine = results["default"]
        results["serenade"] = other
        results["ratio_to_serenade"] = {
            p: round(mine["at_1000_per_second"][p] / other["at_1000_per_second"][p], 2)
            for p in ("p50_ms", "p90_ms", "p99_ms")
        }
        results["ratio_to_serenade"]["most_per_second"] = round(mine["most_per_second"] / other["most_per_second"], 2)
    return results


def main() -> None:
    """Print what ``run`` measured."""
    sys.stdout.write(json.dumps(run("--quick" in sys.argv), indent=2) + "\n")


if __name__ == "__main__":
    main()
