"""From drift to swap with real processes, killed at bad moments: one stack, one stream of shoppers, one test after the
other in this order."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch
from kafka import KafkaProducer

from services.simulator.shoppers import ShopperConfig, Shoppers
from shared.adapters.embedded import recognise
from shared.adapters.kafka_client import client_config
from shared.adapters.registry import FileModelRegistry
from shared.adapters.settings import KafkaSettings
from shared.core.engagement import encode_engagement, engagement_batch
from shared.model.network import Network
from tests.servers import IN_CI, ROOT, free_port, redis_server_path, until
from tests.stack_process import StackProcess, children, lives, stack_environment

pytestmark = [
    pytest.mark.skipif(redis_server_path() is None and not IN_CI, reason="no redis-server"),
    pytest.mark.timeout(400),
]

SHOP = ShopperConfig(items=320, categories=16, users=300, active=50)
WIDTH = 32
RATE = 250.0
SETTINGS = {
    "DRIFT_MIN_EVENTS": 200, "DRIFT_COOLDOWN_S": 3, "ROLLBACK_EVENTS": 400,
    "TRAIN_MIN_SESSIONS": 150, "TRAIN_WIDTH": WIDTH, "TRAIN_EPOCHS": 6, "TRAIN_WINDOW_EVENTS": 8000,
    "SESSION_LOG_FLUSH_S": 0.5, "SWEEP_DELAY_S": 0.5, "EMIT_TOPIC": False, "ENGAGEMENT_CPU_SHARE": 0.5,
    "OMP_NUM_THREADS": 1,
}  # fmt: skip


class Stream(threading.Thread):
    """Shoppers at a steady rate; ``shift`` changes what everybody likes."""

    def __init__(self, producer: KafkaProducer) -> None:
        super().__init__(daemon=True)
        self._producer = producer
        self._shoppers = Shoppers(SHOP, seed=5)
        self._over, self._shift = threading.Event(), threading.Event()
        self.sent = 0

    def run(self) -> None:
        began = time.monotonic()
        while not self._over.is_set():
            if self._shift.is_set():
                self._shift.clear()
                self._shoppers.shift()
            action = self._shoppers.next()
            event = {
                "user_id": action.user_id, "item_id": action.item_id, "event_type": action.event_type,
                "session_id": action.session_id, "ts": int(time.time() * 1000),
            }  # fmt: skip
            self._producer.send("interactions", key=action.user_id.encode(), value=json.dumps(event).encode())
            self.sent += 1
            if self.sent % 25 == 0:
                self._over.wait(max(0.0, began + self.sent / RATE - time.monotonic()))

    def shift(self) -> None:
        self._shift.set()

    def stop(self) -> None:
        self._over.set()
        self.join()


class Scene:
    """The stack as its operator sees it."""

    def __init__(self, stack: StackProcess, health: int) -> None:
        ready = stack.ready()
        self.stack, self.health = stack, health
        self.registry = FileModelRegistry(str(ready["model_uri"]))
        self.folder = Path(str(ready["model_uri"]))
        kafka = recognise(KafkaSettings(kafka_bootstrap_servers=str(ready["kafka"])))
        self.producer = KafkaProducer(acks="all", linger_ms=5, **client_config(kafka))
        self.http = httpx.Client(base_url=str(ready["http"]), timeout=10)
        self.stream = Stream(self.producer)
        self._offset = 0

    def close(self) -> None:
        if self.stream.is_alive():
            self.stream.stop()
        self.producer.close()
        self.http.close()

    def models(self) -> dict[str, object]:
        return self.http.get("/v1/models").json()

    def details(self, kind: str) -> list[dict[str, object]]:
        """Of the journal's notes of a kind, oldest first."""
        return [dict(note.details) for note in reversed(self.registry.notes()) if note.kind == kind]

    def loaded(self) -> str | None:
        return (self.models()["loaded"] or {}).get("version")

    def retrainer(self) -> int:
        return self.stack.pids()["retrainer"]

    def training(self) -> list[int]:
        """Processes of the training that runs."""
        return children(self.retrainer())

    def settled(self) -> str | None:
        """The version in service, when no training runs and enough of its engagement is known."""
        version, events = self.registry.current(), 0.0
        try:
            metrics = httpx.get(f"http://127.0.0.1:{self.health}/metrics", timeout=2).text
        except httpx.HTTPError:
            return None  # it is being started again
        for line in metrics.splitlines():
            if line.startswith("driftwood_engagement_read_events_total") and f'version="{version}"' in line:
                events = float(line.split()[-1])
        return version if events > 1000 and not self.training() else None

    def kill_retrainer(self) -> list[int]:
        """SIGKILL; returns what was running below it, when all of that has ended."""
        pid = self.retrainer()
        below = children(pid)
        os.kill(pid, signal.SIGKILL)
        until(lambda: not any(lives(p) for p in [pid, *below]), 10, "the training to end with its retrainer")
        until(lambda: self.retrainer() != pid, 20, "the retrainer to be started again")
        return below

    def publish_noise(self, seed: int, promote: bool = True) -> str:
        """A model that has learnt nothing: its scores are random."""
        names = sorted({f"c{n % SHOP.categories:02d}-{n // SHOP.categories:03d}" for n in range(SHOP.items)})
        weights = Network(len(names), WIDTH, torch.Generator().manual_seed(seed)).weights()
        weights["item_bias"] = torch.randn(len(names), generator=torch.Generator().manual_seed(seed))
        return self.registry.publish(weights, names, make_current=promote).version

    def tell(self, version: str, rate: float, events: int) -> None:
        """Engagement of the version, as the consumer would tell it."""
        rng = random.Random(events)
        for _ in range(0, events, 50):
            first, self._offset = self._offset, self._offset + 50
            ranks = [(first + n, int(rng.random() < rate)) for n in range(50)]
            now = int(time.time() * 1000)
            batch = engagement_batch((version, "gru"), 99, 1, (first, self._offset), 50, ranks, now, {})
            self.producer.send("engagement", key=version.encode(), value=encode_engagement(batch))
        self.producer.flush()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    port = free_port()
    with StackProcess(tmp_path_factory.mktemp("drift"), **SETTINGS, RETRAINER_PORT=port) as stack:
        scene = Scene(stack, port)
        yield scene
        scene.close()


def test_an_alarm_with_nothing_in_the_log(scene: Scene):
    version = scene.publish_noise(1)
    until(lambda: scene.details("swap"), 20, "the first model to be seen")
    scene.tell(version, 0.4, 800)  # less than a trained model comes to: the alarm does not repeat for ever
    scene.tell(version, 0.0, 400)
    training = until(lambda: scene.details("training"), 60, "the training to end")[0]
    assert (training["reason"], training["outcome"]) == ("drift", "nothing")
    assert scene.details("alarm")[0]["before"] == pytest.approx(0.4, abs=0.1)
    assert scene.registry.current() == version


@pytest.mark.slow
def test_a_retrainer_killed_in_the_middle_of_a_training(scene: Scene):
    """The level stays low, so the alarm repeats; now the log holds enough."""
    scene.stream.start()
    until((scene.stack.folder / "training" / "plan.json").exists, 90, "a training to have read the log")
    assert scene.registry.current() == "1"
    assert scene.kill_retrainer()
    until(lambda: scene.registry.current() != "1", 120, "a better model in service")
    until(lambda: scene.loaded() == scene.registry.current(), 10, "the recommender to rank with it")
    version = scene.registry.current()
    gate = until(lambda: [g for g in scene.details("gate") if g["version"] == version], 20, "the gate's note")[0]
    assert gate["decision"] == "promoted"
    assert gate["challenger"]["recall20"] > 2 * gate["champion"]["recall20"]


@pytest.mark.slow
def test_taste_shifts_and_a_retrainer_killed_while_it_publishes(scene: Scene):
    before = until(scene.settled, 120, "a model with some history")
    alarms = len(scene.details("alarm"))
    scene.stream.shift()
    until(lambda: len(scene.details("alarm")) > alarms, 60, "an alarm")
    alarm = scene.details("alarm")[alarms]
    assert alarm["version"] == before
    assert alarm["after"] < 0.9 * alarm["before"]
    versions = len(scene.registry.versions())
    until(lambda: _publishing(scene.folder, versions), 90, "a version to be written")
    scene.kill_retrainer()
    until(lambda: scene.registry.current() != before, 90, "a better model in service")
    for manifest in scene.registry.versions():
        scene.registry.load(manifest.version)
    swap = until(lambda: [s for s in scene.details("swap") if s["from"] == before], 30, "the note of the swap")[0]
    assert swap["why"] == "gate"
    assert not list(scene.folder.glob("versions/*/.unfinished*"))


def _publishing(folder: Path, versions: int) -> bool:
    names = os.listdir(folder / "versions")
    return any(name.startswith(".unfinished") for name in names) or len(names) > versions


@pytest.mark.slow
def test_a_challenger_that_is_not_better_is_kept_back(scene: Scene, tmp_path: Path):
    """By so much no challenger is better."""
    uri = {"MODEL_URI": scene.folder, "SESSION_LOG_URI": scene.stack.folder / "session-log", "TRAIN_DIR": tmp_path}
    done = subprocess.run(
        [sys.executable, "-m", "services.retrainer.train_job"],
        cwd=ROOT,
        env=stack_environment(**SETTINGS, **uri, GATE_MARGIN=100),
        capture_output=True,
        text=True,
        check=True,
    )
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["promoted"], told["gate"]["decision"]) == (False, "kept back")
    (shown,) = [v for v in scene.models()["versions"] if v["version"] == told["published"]]
    assert shown["role"] == "rejected"
    assert shown["gate"] == told["gate"]
    assert scene.registry.current() != told["published"]


def test_a_bad_promotion_is_rolled_back(scene: Scene):
    champion = until(scene.settled, 120, "a champion with some history")
    bad = scene.publish_noise(2)
    until(lambda: scene.loaded() == bad, 10, "the bad model in service")
    until(lambda: scene.registry.current() == champion, 60, "the champion to be back")
    # There may be others: where a shift and a promotion meet, the one is taken for the other's fault.
    back = until(lambda: [told for told in scene.details("rollback") if told["version"] == bad], 10, "the note")[0]
    assert (back["back_to"], back["why"]) == (champion, "engagement")
    assert back["after"] < back["before"]
    until(lambda: scene.loaded() == champion, 10, "the recommender to rank with the champion")
    (shown,) = [v for v in scene.models()["versions"] if v["version"] == bad]
    assert shown["role"] == "rolled back"


def test_a_corrupted_challenger_is_refused_and_taken_back(scene: Scene):
    champion = until(scene.settled, 120, "a champion that nobody replaces just now")
    damaged = scene.publish_noise(3, promote=False)
    weights = scene.folder / "versions" / damaged / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    scene.registry.set_current(damaged)
    until(lambda: "weights.safetensors" in str(scene.models()["problem"]), 10, "the recommender to refuse it")
    assert scene.loaded() == champion
    ranking = scene.http.get("/v1/users/shopper-00001/recommendations").json()
    assert (ranking["strategy"], ranking["model_version"]) == ("gru", champion)
    until(lambda: scene.registry.current() == champion, 40, "the champion to be back")
    until(lambda: scene.details("rollback")[-1]["version"] == damaged, 10, "the note")


def test_another_retrainer_takes_over_from_one_that_hangs(scene: Scene, tmp_path: Path):
    """The first is stopped, not killed: when it wakes, it finds the lease taken, and leaves the work to the other."""
    first, port = scene.retrainer(), free_port()
    ready, folder = scene.stack.ready(), scene.stack.folder
    environment = stack_environment(
        **{**SETTINGS, "LOG_FORMAT": "text", "KAFKA_BOOTSTRAP_SERVERS": ready["kafka"], "KAFKA_API_VERSION": "2.0"},
        REDIS_URL=ready["redis"],
        MODEL_URI=scene.folder,
        SESSION_LOG_URI=folder / "session-log",
        TRAIN_DIR=tmp_path,
        RETRAINER_PORT=port,
        RETRAINER_LEASE_S=5,
    )
    with (tmp_path / "second.log").open("wb") as log:
        second = subprocess.Popen([sys.executable, "-m", "services.retrainer"], cwd=ROOT, env=environment, stderr=log)
    try:
        until(lambda: _readiness(port).get("decides") is False, 60, "the second one to stand by")
        os.kill(first, signal.SIGSTOP)
        until(lambda: _readiness(port).get("decides"), 30, "the second one to decide")
        until(lambda: _readiness(port).get("champion") == scene.registry.current(), 10, "it to know the champion")
        os.kill(first, signal.SIGCONT)
        until(lambda: _readiness(scene.health).get("decides") is False, 30, "the first one to stand by")
        assert _readiness(port)["decides"]
        assert scene.retrainer() == first
    finally:
        os.kill(first, signal.SIGCONT)
        second.terminate()
        second.wait(30)


def _readiness(port: int) -> dict[str, object]:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=2).json()
    except httpx.HTTPError:
        return {}
