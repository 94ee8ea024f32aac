"""The whole system as its users see it, killed at bad moments: GET and POST must give the same rankings afterwards."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from kafka import KafkaProducer

from services.simulator.shoppers import ShopperConfig, Shoppers
from shared.adapters.embedded import recognise
from shared.adapters.kafka_client import client_config
from shared.adapters.settings import KafkaSettings
from tests.conftest import Broker
from tests.servers import ROOT, redis_server_path, until
from tests.stack_process import StackProcess

pytestmark = pytest.mark.skipif(redis_server_path() is None, reason="no redis-server")

SHOP = ShopperConfig(items=160, categories=8, users=400, active=60)


@pytest.fixture(scope="module")
def log_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of the shop, to train from."""
    shoppers = Shoppers(SHOP, seed=5)
    path = tmp_path_factory.mktemp("log") / "log.csv"
    rows = ["session_id,item_id,timestamp_ms"]
    for n in range(6000):
        action = shoppers.next()
        rows.append(f"{action.session_id},{action.item_id},{1_700_000_000_000 + 1000 * n}")
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture(params=["embedded", "kafka"])
def stack(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StackProcess]:
    environment = {"USER_TTL_S": "86400"}
    if request.param == "kafka":
        broker: Broker = request.getfixturevalue("real_kafka")
        tag = f"-e2e-{time.time_ns()}"
        environment["KAFKA_BOOTSTRAP_SERVERS"] = broker.bootstrap
        for field, default in KafkaSettings.model_fields.items():
            if field.startswith("topic_"):
                environment[field.upper()] = f"{default.default}{tag}"
        for group in ("CONSUMER_GROUP", "RECOMMENDER_GROUP"):
            environment[group] = f"{group.lower()}{tag}"
    with StackProcess(tmp_path, **environment) as stack:
        stack.ready()
        stack.topic = environment.get("TOPIC_INTERACTIONS", "interactions")
        yield stack


def train(log_file: Path, model_uri: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "services.retrainer.train_cli", "--data", str(log_file), "--model-uri", model_uri],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip


class Killer(threading.Thread):
    """Kills services of the stack with SIGKILL until told to stop."""

    def __init__(self, stack: StackProcess, victims: list[str], seed: int) -> None:
        super().__init__()
        self._stack, self._victims, self._rng = stack, victims, random.Random(seed)
        self._over = threading.Event()
        self.killed: list[str] = []

    def run(self) -> None:
        while not self._over.wait(self._rng.uniform(0.5, 3.0)):
            victim = self._rng.choice(self._victims)
            try:
                os.kill(self._stack.pids()[victim], signal.SIGKILL)
            except (ProcessLookupError, KeyError):
                continue
            self.killed.append(victim)

    def stop(self) -> None:
        self._over.set()
        self.join()


def test_rankings_after_kills_equal_those_of_the_same_items_posted(stack: StackProcess, log_file: Path):
    ready = stack.ready()
    kafka = recognise(KafkaSettings(kafka_bootstrap_servers=str(ready["kafka"])))
    producer = KafkaProducer(acks="all", **client_config(kafka))
    shoppers = Shoppers(SHOP, seed=6)
    sent: dict[str, list[str]] = defaultdict(list)
    killer = Killer(stack, ["consumer", "recommender", "redis"], seed=1)

    def stream(events: int) -> None:
        for n in range(events):
            action = shoppers.next()
            user = f"new-{action.user_id}"
            event = {"user_id": user, "item_id": action.item_id, "event_type": "view", "ts": 1_700_100_000_000 + n}
            producer.send(stack.topic, key=user.encode(), value=json.dumps(event).encode())
            sent[user].append(action.item_id)
            if n % 20 == 0:
                producer.flush()
                time.sleep(0.05)
        producer.flush()

    with httpx.Client(base_url=str(ready["http"]), timeout=10) as http:

        def ask(method: str, path: str, **body: object) -> dict[str, object]:
            try:
                answer = http.request(method, path, json=body or None)
                return answer.json() if answer.status_code == 200 else {}
            except (httpx.HTTPError, json.JSONDecodeError):
                return {}

        train(log_file, str(ready["model_uri"]))
        until(lambda: ask("GET", "/v1/models").get("loaded"), 60, "the model in use")
        killer.start()
        stream(2500)
        killer.stop()
        assert len(killer.killed) >= 2
        sample = sorted(sent, key=lambda user: -len(sent[user]))[:60]

        def differing() -> list[str]:
            wrong = []
            for user in sample:
                by_user = ask("GET", f"/v1/users/{user}/recommendations?k=50")
                by_items = ask("POST", "/v1/recommendations", items=sent[user], k=50)
                if not by_user or by_user.get("items") != by_items.get("items"):
                    wrong.append(user)
                else:
                    assert by_user["strategy"] == by_items["strategy"] == "gru"
            return wrong

        until(lambda: not differing(), 90, "all rankings to be those of a clean replay")
        user = sample[0]
        seen = set(sent[user][-32:])
        unseen = ask("GET", f"/v1/users/{user}/recommendations?k=50&exclude_seen=true")
        assert unseen["items"]
        assert not seen & {item["item_id"] for item in unseen["items"]}
        assert http.delete(f"/v1/users/{user}").status_code == 204
        assert ask("GET", f"/v1/users/{user}/recommendations")["strategy"] == "trending"
    producer.close()
