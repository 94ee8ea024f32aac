"""Consumer throughput, Kafka to Redis, against an empty kafka-python poll loop on the same messages.

Two ceilings: kafka-python as it installs by itself, with checksums computed in Python; and as we install it, with the C
extension ``crc32c``, which doubles the speed of a loop that does nothing else.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from shared.adapters.kafka_client import client_config
from shared.adapters.settings import KafkaSettings
from tests.bench.world import BenchWorld, metric, say
from tests.servers import ROOT

APPLIED = 'driftwood_consumer_events_total{outcome="applied"}'


def poll_loop(count: int) -> None:
    """In a process of its own: poll ``count`` messages and do nothing with them. Prints messages a second."""
    from kafka import KafkaConsumer

    settings = KafkaSettings()
    consumer = KafkaConsumer(
        settings.topic_interactions,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        max_poll_records=4096,
        max_partition_fetch_bytes=8 << 20,
        **client_config(settings),
    )
    seen, started = 0, 0.0
    while seen < count:
        for records in consumer.poll(200).values():
            # The clock starts with the first batch: connecting is no part of the rate.
            if not started:
                started, count = time.perf_counter(), count - len(records)
            else:
                seen += len(records)
    print(seen / (time.perf_counter() - started))


def measure_poll(world: BenchWorld, count: int, plain: bool) -> float:
    """plain: without the C extension for checksums, which must be hidden before kafka-python looks for it."""
    env = {
        "KAFKA_BOOTSTRAP_SERVERS": world.kafka.kafka_bootstrap_servers,
        "KAFKA_API_VERSION": world.kafka.kafka_api_version,
    }
    hide = "import sys; sys.modules['crc32c'] = None; " if plain else ""
    code = f"{hide}from tests.bench.bench_consumer import poll_loop; poll_loop({count})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    return float(done.stdout)


def measure_consumer(world: BenchWorld, count: int, run: int) -> float:
    """A new group on an empty set of keys reads the same messages."""
    name = f"bench-{time.time_ns()}"
    settings = {"consumer_group": name, "redis_prefix": f"{name}:"}
    with world.service("services.consumer", "consumer_port", **settings) as base:
        first_at, first = 0.0, 0.0
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            now, done = time.perf_counter(), metric(base, APPLIED)
            if not first and done:
                first_at, first = now, done
            if done >= count:
                return (done - first) / (now - first_at)
            time.sleep(0.05)
    raise AssertionError(f"the consumer did not apply {count} events in 120 s")


def run(world: BenchWorld, quick: bool = False) -> dict[str, float]:
    """Prints medians and their ratio."""
    count = 60_000 if quick or world.broker_kind != "Apache Kafka" else 200_000
    world.produce(count, users=20_000)
    plain, fast, applied = [], [], []
    for n in range(1 if quick else 3):
        plain.append(measure_poll(world, count, plain=True))
        fast.append(measure_poll(world, count, plain=False))
        applied.append(measure_consumer(world, count, n))
    rate, alone, with_crc = (statistics.median(rates) for rates in (applied, plain, fast))
    say(
        f"consumer: {rate:,.0f} events/s from {world.broker_kind} to Redis (width 128, 20,000 users); an empty "
        f"kafka-python poll loop on the same messages: {alone:,.0f}/s; ratio {rate / alone:.2f} (wanted 0.30, aim "
        f"0.55); the same loop with checksums in C: {with_crc:,.0f}/s; ratio {rate / with_crc:.2f}"
    )
    return {
        "events_per_s": rate,
        "poll_per_s": alone,
        "ratio": rate / alone,
        "poll_crc32c_per_s": with_crc,
        "ratio_crc32c": rate / with_crc,
    }
