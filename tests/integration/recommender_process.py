"""A recommender as a process, and a consumer when asked for."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import msgspec
from kafka import KafkaConsumer

from shared.adapters.kafka_client import client_config
from shared.adapters.registry import FileModelRegistry
from shared.adapters.settings import KafkaSettings, RedisSettings
from tests.conftest import service_env
from tests.servers import ROOT, free_port, until
from tests.unit.recommender_twins import ITEMS, weights


class Process:
    """A recommender, and a consumer when asked for."""

    def __init__(self, kafka: KafkaSettings, redis: RedisSettings, folder: Path) -> None:
        self.kafka, self.redis, self.folder = kafka, redis, folder
        self.registry = FileModelRegistry(str(folder / "models"))
        self.processes: list[subprocess.Popen[bytes]] = []
        self.client = httpx.Client(timeout=20)

    def start(self, module: str = "recommender", **settings: object) -> subprocess.Popen[bytes]:
        port = free_port()
        if module == "recommender":
            self.client.base_url = httpx.URL(f"http://127.0.0.1:{port}")
        settings |= {
            "recommender_group": f"g-{self.redis.redis_prefix}",
            "consumer_group": f"c-{self.redis.redis_prefix}",
        }
        quick = {"model_poll_s": 0.1, "trending_refresh_ms": 100, "emit_linger_ms": 20}
        patient = {"http_kafka_timeout_ms": 15_000}  # processes start side by side: how long that takes says nothing
        places = {
            "http_port": port,
            "http_host": "127.0.0.1",
            "consumer_port": free_port(),
            "consumer_host": "127.0.0.1",
        }
        env = service_env(self.kafka, self.redis, self.folder / "models", **(quick | patient | places | settings))
        with (self.folder / f"{module}-{len(self.processes)}.log").open("wb") as log:
            process = subprocess.Popen([sys.executable, "-m", f"services.{module}"], cwd=ROOT, env=env, stderr=log)
        self.processes.append(process)
        if module == "recommender":
            until(lambda: self.readyz().get("ready") is not None, 60, f"the recommender answers, see {self.folder}")
        return process

    def publish(self, seed: int) -> None:
        self.registry.publish(weights(seed), ITEMS)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.client.get(path, **options)

    def readyz(self) -> dict[str, Any]:
        try:
            return dict(self.get("/readyz").json())
        except httpx.TransportError:
            return {}

    def ranking(self, user: str) -> dict[str, Any]:
        return dict(self.get(f"/v1/users/{user}/recommendations").json())

    def session(self, items: list[str]) -> dict[str, Any]:
        return dict(self.client.post("/v1/recommendations", json={"items": items}).json())

    def send(self, user: str, *items: str) -> None:
        now = int(time.time() * 1000)
        events = [{"user_id": user, "item_id": item, "event_type": "view", "ts": now} for item in items]
        answer = self.client.post("/v1/interactions", json=events)
        assert answer.status_code == 202, answer.text

    def published(self, seconds: float = 1.0) -> dict[str, Any]:
        """The newest value of each user in the recommendations topic."""
        reader = KafkaConsumer(
            self.kafka.topic_recommendations, auto_offset_reset="earliest", consumer_timeout_ms=int(seconds * 1000),
            enable_auto_commit=False, **client_config(self.kafka),
        )  # fmt: skip
        newest = {r.key.decode(): r.value and msgspec.json.decode(r.value) for r in reader}
        reader.close()
        return newest

    def close(self) -> None:
        self.client.close()
        for process in self.processes:
            process.kill()
            process.wait()
