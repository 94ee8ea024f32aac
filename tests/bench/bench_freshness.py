"""From an event's publication to its state, while a constant stream of other events runs through the same consumer."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time

import numpy as np
from kafka import KafkaProducer

from shared.adapters.kafka_client import client_config
from shared.adapters.kafka_reader import ensure_topics
from shared.adapters.redis_store import RedisStateStore
from tests.bench.world import BenchWorld, metric, say
from tests.conftest import service_env
from tests.servers import ROOT, until

RATE = 1000
PROBES_PER_S = 20


def run(world: BenchWorld, quick: bool = False) -> dict[str, float]:
    """Prints p50 and p99 in milliseconds, measured by probes that read Redis until their event is in the state."""
    seconds = 4.0 if quick else 20.0
    # Topics of its own: what other benchmarks left would be read first.
    kafka = world.kafka.model_copy(update={"topic_interactions": "fresh", "topic_state_updates": "fresh-updates"})
    redis = world.redis.model_copy(update={"redis_prefix": "fresh:"})
    ensure_topics(kafka)
    world = dataclasses.replace(world, kafka=kafka, redis=redis)
    env = service_env(kafka, redis, world.models)
    store = RedisStateStore(redis)
    with world.service("services.consumer", "consumer_port", consumer_group="fresh") as base:
        until(lambda: metric(base, "driftwood_consumer_partitions") >= 4, 60, "partitions")
        feed = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.event_feed", "--users=20000", "--items=50000", f"--rate={RATE}"],
            cwd=ROOT,
            env={**os.environ, **env},
        )
        try:
            applied = 'driftwood_consumer_events_total{outcome="applied"}'
            start = metric(base, applied)
            until(lambda: metric(base, applied) > start + RATE, 60, "the stream to flow")
            waits = _probe(world, store, seconds)
        finally:
            feed.kill()
            feed.wait()
    store.close()
    p50, p99 = (float(np.percentile(waits, q)) * 1000 for q in (50, 99))
    say(
        f"freshness at {RATE} events/s: publish to state p50 {p50:.0f} ms, p99 {p99:.0f} ms over {len(waits)} probes "
        f"(wanted p99 under 150 ms, aim 50)"
    )
    return {"p50_ms": p50, "p99_ms": p99, "probes": len(waits)}


def _probe(world: BenchWorld, store: RedisStateStore, seconds: float) -> list[float]:
    producer = KafkaProducer(acks="all", **client_config(world.kafka))
    waits: list[float] = []
    producer.send(world.kafka.topic_dlq, b"connects, and learns the partitions").get(30)
    producer.partitions_for(world.kafka.topic_interactions)
    began = time.perf_counter()
    while (now := time.perf_counter()) < began + seconds:
        user = f"probe-{len(waits)}"
        event = {"user_id": user, "item_id": "i1", "event_type": "view", "ts": int(time.time() * 1000)}
        producer.send(world.kafka.topic_interactions, key=user.encode(), value=json.dumps(event).encode())
        while store.read([user])[0] is None:
            if time.perf_counter() > now + 10:
                raise AssertionError(f"{user}'s event did not arrive in 10 s")
            time.sleep(0.0005)
        waits.append(time.perf_counter() - now)
        # Probes come at random phases of the consumer's rhythm.
        time.sleep((0.5 + (len(waits) * 0.618) % 1) / PROBES_PER_S)
    producer.close()
    return waits
