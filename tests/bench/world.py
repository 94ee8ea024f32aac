"""What the benchmarks share: servers, a synthetic model, messages, and how numbers are printed."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from kafka import KafkaProducer

from shared.adapters.kafka_client import client_config
from shared.adapters.kafka_reader import ensure_topics
from shared.adapters.registry import FileModelRegistry
from shared.adapters.settings import KafkaSettings, RedisSettings
from tests.conftest import service_env
from tests.servers import REAL_KAFKA, ROOT, KafkaNode, RedisServer, embedded_broker, free_port, until

ITEMS = 50_000
WIDTH = 128
NOW_MS = 1_700_000_000_000


@dataclass
class BenchWorld:
    """A broker, a Redis and a registry with a synthetic model of 50,000 items at width 128."""

    kafka: KafkaSettings
    redis: RedisSettings
    folder: Path
    broker_kind: str

    @property
    def models(self) -> Path:
        return self.folder / "models"

    @contextlib.contextmanager
    def service(self, module: str, port_name: str, **settings: object) -> Iterator[str]:
        """A service process; gives its address once it is ready."""
        port = free_port()
        env = service_env(self.kafka, self.redis, self.models, **{port_name: port}, **settings)
        env |= {"CONSUMER_HOST": "127.0.0.1", "HTTP_HOST": "127.0.0.1", "LOG_LEVEL": "WARNING"}
        process = subprocess.Popen([sys.executable, "-m", module], cwd=ROOT, env=env)
        try:
            until(lambda: get(f"http://127.0.0.1:{port}/readyz") is not None, 60, f"{module} ready")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(30)

    def produce(self, count: int, users: int, seed: int = 1) -> None:
        """Events of random users on random items, about 110 bytes each, all acknowledged."""
        rng = random.Random(seed)
        producer = KafkaProducer(linger_ms=20, batch_size=1 << 17, **client_config(self.kafka))
        for n in range(count):
            user = f"user-{rng.randrange(users)}"
            event = {
                "user_id": user, "item_id": str(100_000_000 + rng.randrange(ITEMS)), "event_type": "view",
                "ts": NOW_MS + n,
            }  # fmt: skip
            producer.send(self.kafka.topic_interactions, key=user.encode(), value=json.dumps(event).encode())
        producer.flush()
        producer.close()


def get(url: str) -> str | None:
    """The body of a GET, None where the answer is no success."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return str(answer.read().decode())
    except OSError:
        return None


def metric(base: str, name: str) -> float:
    """The sum of a metric's samples whose line begins with ``name``; base: http://host:port."""
    text = get(base + "/metrics") or ""
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))


def model_in_use(base: str) -> str:
    """The version that /readyz tells; empty: it does not answer yet."""
    ready = get(base + "/readyz")
    return str(json.loads(ready).get("model", "")) if ready else ""


def item_number(n: int) -> str:
    """An item id of nine digits, as shops have them."""
    return str(100_000_000 + n)


def item_name(n: int) -> str:
    """Item ids of ``tests.bench.event_feed``."""
    return f"i{n}"


_SPREAD = {"item_embedding": 0.3, "item_bias": 0.5, "gru.weight_ih_l0": 0.15}
"""So that scores spread as those of a trained model do; 0.1 for all other weights."""


def publish_synthetic(
    uri: Path, items: int = ITEMS, width: int = WIDTH, named: Callable[[int], str] = item_number
) -> FileModelRegistry:
    """A model with random weights, as costly as a trained one; and the registry that it is in."""
    g = torch.Generator().manual_seed(1)
    shapes = {
        "item_embedding": (items, width),
        "item_bias": (items,),
        "gru.weight_ih_l0": (3 * width, width),
        "gru.weight_hh_l0": (3 * width, width),
        "gru.bias_ih_l0": (3 * width,),
        "gru.bias_hh_l0": (3 * width,),
    }
    weights = {name: torch.randn(shape, generator=g) * _SPREAD.get(name, 0.1) for name, shape in shapes.items()}
    registry = FileModelRegistry(str(uri))
    registry.publish(weights, [named(n) for n in range(items)])
    return registry


@contextlib.contextmanager
def process(module: str, env: Mapping[str, str], *arguments: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process of ours, ended by SIGTERM."""
    with log.open("wb") as out:
        started = subprocess.Popen([sys.executable, "-m", module, *arguments], cwd=ROOT, env=dict(env), stderr=out)
    try:
        yield started
    finally:
        started.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            started.wait(20)
        started.kill()
        started.wait()


def resident_mb(pid: int, field: str = "VmRSS") -> float:
    """Resident memory, or its highest so far (VmHWM); 0 where /proc does not tell."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return round(int(line.split()[1]) / 1024, 1)
    return 0.0


@contextlib.contextmanager
def bench_world() -> Iterator[BenchWorld]:
    """Apache Kafka where ../shared/kafka is, else the embedded broker; a redis-server of our own."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name in ("redis", "kafka"):
            (folder / name).mkdir()
        server = RedisServer(folder / "redis", fsync="everysec")
        server.start()
        stack.callback(server.stop)
        if REAL_KAFKA.exists():
            node = KafkaNode(folder / "kafka")
            node.start()
            stack.callback(node.stop)
            kafka, kind = KafkaSettings(kafka_bootstrap_servers=node.bootstrap), "Apache Kafka"
        else:
            bootstrap = stack.enter_context(embedded_broker())
            kafka = KafkaSettings(kafka_bootstrap_servers=bootstrap, kafka_api_version="2.0")
            kind = "embedded broker"
        ensure_topics(kafka)
        world = BenchWorld(kafka, RedisSettings(redis_url=server.url), folder, kind)
        publish_synthetic(world.models)
        yield world


def say(text: str) -> None:
    """A line of the report."""
    print(text, flush=True)
