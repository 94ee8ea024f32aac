"""The recommender as a process against real servers: the loop with the consumer, outages, damage, an orderly stop."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import torch
from kafka import KafkaConsumer

from shared.adapters.kafka_client import client_config
from shared.adapters.kafka_reader import ensure_topics
from shared.adapters.registry import FileModelRegistry
from shared.adapters.settings import KafkaSettings, RedisSettings
from tests.conftest import service_env
from tests.servers import ROOT, RedisServer, free_port, until
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
        places = {
            "http_port": port,
            "http_host": "127.0.0.1",
            "consumer_port": free_port(),
            "consumer_host": "127.0.0.1",
        }
        env = service_env(self.kafka, self.redis, self.folder / "models", **quick, **places, **settings)
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


@pytest.fixture
def system(kafka_settings: KafkaSettings, redis_settings: RedisSettings, tmp_path: Path) -> Iterator[Process]:
    ensure_topics(kafka_settings)
    system = Process(kafka_settings, redis_settings, tmp_path)
    yield system
    system.close()


def test_the_loop_from_http_to_http_and_topic(system: Process) -> None:
    system.publish(1)
    system.start()
    system.start("consumer")
    user = "a/ü"
    system.send("a/ü", "item-1", "item-2", "unheard-of", "item-3")
    path = "a%2F%C3%BC"
    until(lambda: system.ranking(path)["strategy"] == "gru", 60, "the state")
    until(lambda: system.ranking(path)["items"] == system.session(["item-1", "item-2", "item-3"])["items"], 20)
    until(lambda: (system.published().get(user) or {}).get("items") == system.ranking(path)["items"], 30, "topic")
    until(lambda: system.ranking("nobody")["items"][0]["score"], 20, "trending")
    trending = [item["item_id"] for item in system.ranking("nobody")["items"] if item["score"]]
    assert sorted(trending) == ["item-1", "item-2", "item-3", "unheard-of"]

    system.publish(2)
    until(lambda: system.ranking(path)["model_version"] == "2", 20, "the new model")
    assert system.ranking(path)["items"] == system.session(["item-1", "item-2", "item-3"])["items"]

    assert system.client.delete(f"/v1/users/{path}").status_code == 204
    assert system.ranking(path)["strategy"] == "trending"
    until(lambda: system.published().get(user, "") is None, 30, "the ranking is gone from the topic")
    system.send(user, "item-9")
    until(lambda: system.ranking(path)["items"] == system.session(["item-9"])["items"], 30, "the user is back")


def test_no_model_then_one_then_a_damaged_one(system: Process) -> None:
    system.start()
    until(lambda: system.readyz().get("ready"), 30)
    assert "none published yet" in system.readyz()["model"]
    assert system.session(["item-1"])["strategy"] == "trending"
    system.publish(1)
    until(lambda: system.session(["item-1"])["strategy"] == "gru", 20)
    damaged = weights(2)
    system.registry.publish(damaged, ITEMS, make_current=False)
    file = system.folder / "models" / "versions" / "2" / "weights.safetensors"
    file.chmod(0o644)
    file.write_bytes(file.read_bytes()[:-10])
    system.registry.set_current("2")
    until(lambda: system.readyz().get("model_problem"), 20, "the damage is told")
    ready = system.readyz()
    assert (ready["ready"], ready["model"]) == (True, "1")
    assert "weights.safetensors" in ready["model_problem"]
    view = system.get("/v1/models").json()
    assert (view["champion"], view["loaded"]["version"]) == ("2", "1")
    assert torch.isfinite(damaged["item_bias"]).all()
    assert system.session(["item-1"])["model_version"] == "1"


def test_redis_stalled_gone_and_back(system: Process, tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    server.start()
    system.redis = RedisSettings(redis_url=server.url, redis_prefix="t:")  # type: ignore[arg-type]
    system.publish(1)
    system.start(rank_deadline_ms=300)
    assert system.ranking("u")["strategy"] == "trending"
    assert server.process is not None
    system.processes.append(server.process)
    server.process.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    stalled = system.get("/v1/users/u/recommendations")
    assert (stalled.status_code, stalled.headers["retry-after"]) == (503, "1")
    assert time.monotonic() - began < 2
    until(lambda: system.get("/readyz").status_code == 503, 5)
    assert system.session(["item-1"])["strategy"] == "gru"
    server.process.send_signal(signal.SIGCONT)
    until(lambda: system.get("/v1/users/u/recommendations").status_code == 200, 10)
    server.kill()
    gone = system.get("/v1/users/u/recommendations")
    assert gone.status_code == 503
    assert str(server.port) in gone.json()["error"]
    assert system.client.delete("/v1/users/u").status_code == 503
    server.start()
    until(lambda: system.get("/v1/users/u/recommendations").status_code == 200, 10)
    until(lambda: system.get("/readyz").status_code == 200, 10)
    server.stop()


def test_it_starts_and_says_so_without_kafka(system: Process) -> None:
    system.publish(1)
    system.kafka = system.kafka.model_copy(update={"kafka_bootstrap_servers": f"127.0.0.1:{free_port()}"})
    process = system.start(http_kafka_timeout_ms=1000)
    assert system.session(["item-1"])["strategy"] == "gru"
    assert system.get("/readyz").status_code == 503
    event = {"user_id": "u", "item_id": "i", "event_type": "view", "ts": int(time.time() * 1000)}
    began = time.monotonic()
    refused = system.client.post("/v1/interactions", json=event)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert time.monotonic() - began < 5
    process.terminate()
    assert process.wait(60) == 0


def test_sigterm_finishes_what_was_begun(system: Process) -> None:
    system.publish(1)
    process = system.start()
    for n in range(20):
        system.send(f"u{n}", "item-1")
    process.terminate()
    assert process.wait(30) == 0
    log = (system.folder / "recommender-0.log").read_text()
    assert "recommender stopped" in log
    assert "Traceback" not in log
