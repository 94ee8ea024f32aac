"""The session logger against a real broker: killed, two at once, a topic made anew, a user forgotten."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import NewTopic
from prometheus_client import CollectorRegistry

from services.retrainer.session_log_metrics import SessionLogMetrics
from services.retrainer.session_logger import SessionLogger
from shared.adapters.forgets_reader import KafkaForgetsReader
from shared.adapters.kafka import KafkaInteractionSource
from shared.adapters.kafka_client import client_config
from shared.adapters.kafka_reader import OffsetReader
from shared.adapters.session_log import FileSessionLog
from shared.adapters.settings import ConsumerSettings, EventSettings, KafkaSettings, RedisSettings
from tests.conftest import service_env
from tests.servers import ROOT, until

NOW_MS = 1_700_000_000_000


class World:
    """A topic, a log, and what should be in it."""

    def __init__(self, kafka: KafkaSettings, folder: Path) -> None:
        self.kafka, self.folder = kafka, folder
        self.group = f"log-{uuid.uuid4().hex[:8]}"
        self.log = FileSessionLog(str(folder / "log"))
        self.producer = KafkaProducer(**client_config(kafka))
        self.expected: set[str] = set()
        self.sent = 0
        self.processes: list[subprocess.Popen[bytes]] = []

    def send(self, count: int, user: str = "") -> None:
        for _ in range(count):
            name, item = user or f"u{self.sent % 17}", f"i{self.sent}"
            event = {"user_id": name, "item_id": item, "event_type": "view", "ts": NOW_MS + self.sent}
            self.producer.send(self.kafka.topic_interactions, key=name.encode(), value=json.dumps(event).encode())
            self.expected.add(item)
            self.sent += 1
        self.producer.flush()

    def start(self, instance: str = "") -> subprocess.Popen[bytes]:
        env = service_env(
            self.kafka, RedisSettings(), self.folder / "models", session_log_uri=self.folder / "log",
            session_log_group=self.group, session_log_flush_s=0.1, session_log_upkeep_s=0.3, instance=instance,
            consumer_session_timeout_ms=6000,
        )  # fmt: skip
        command = [sys.executable, "-m", "tests.integration.session_log_process"]
        with (self.folder / f"logger-{len(self.processes)}.log").open("wb") as log:
            self.processes.append(subprocess.Popen(command, cwd=ROOT, env=env, stderr=log))
        return self.processes[-1]

    def logger(self) -> SessionLogger:
        member = ConsumerSettings(consumer_group=self.group, consumer_instance_id="")
        return SessionLogger(
            KafkaInteractionSource(self.kafka, member), self.log,
            KafkaForgetsReader(self.kafka, f"{self.group}-forgets"), EventSettings().rules(),
            SessionLogMetrics(CollectorRegistry()), flush_s=0.1, upkeep_s=0.5,
        )  # fmt: skip

    def settled(self, seconds: float = 60.0) -> None:
        def right() -> bool:
            return set(self.log.window()["item_id"]) == self.expected

        until(right, seconds, "the log holds what was sent")
        counts = Counter(self.log.window()["item_id"].to_list())
        assert counts.most_common(1)[0][1] == 1

    def close(self) -> None:
        self.producer.close()
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def world(kafka_settings: KafkaSettings, tmp_path: Path) -> Iterator[World]:
    made = World(kafka_settings, tmp_path)
    yield made
    made.close()


@pytest.fixture
def logger(world: World) -> Iterator[SessionLogger]:
    """At work in a thread."""
    made = world.logger()
    thread = threading.Thread(target=made.run)
    thread.start()
    yield made
    made.stop()
    thread.join(30)
    assert not thread.is_alive()


@pytest.mark.usefixtures("real_kafka")
def test_killed_again_and_again_each_event_is_logged_once(world: World) -> None:
    for _ in range(2):
        process = world.start(instance="one")  # a static member has its partitions back at once
        logged = world.sent
        world.send(200)
        until(lambda sent=logged: world.log.window().height > sent, 40, "something of it is logged")
        world.send(200)
        process.send_signal(signal.SIGKILL)
        process.wait()
    process = world.start(instance="one")
    world.settled()
    process.terminate()
    assert process.wait(20) == 0


@pytest.mark.usefixtures("real_kafka")
def test_a_stalled_member_that_wakes_up_does_no_harm(world: World) -> None:
    first = world.start()
    world.send(300)
    world.settled()
    first.send_signal(signal.SIGSTOP)
    world.start()
    world.send(300)
    world.settled()  # the group took the partitions from the first
    first.send_signal(signal.SIGCONT)
    world.send(300)
    world.settled()


def test_a_forgotten_user_is_gone_from_the_files_and_may_come_back(world: World, logger: SessionLogger) -> None:
    world.send(60)
    world.send(5, "gone")
    world.settled()
    reader = OffsetReader(world.kafka)
    ends = reader.end_offsets(world.kafka.topic_interactions)
    reader.close()
    wish = {"user_id": "gone", "requested_at": NOW_MS, "end_offsets": {str(p): end for p, end in ends.items()}}
    world.producer.send(world.kafka.topic_forgets, key=b"gone", value=json.dumps(wish).encode())
    world.producer.flush()
    logger.apply_forgets(60)
    users = {user for path in (world.folder / "log").rglob("*.parquet") for user in pl.read_parquet(path)["user_id"]}
    assert users == {f"u{n}" for n in range(17)}
    world.expected -= {f"i{n}" for n in range(60, 65)}
    world.send(2, "gone")
    world.settled()
    until(logger.caught_up, 20, "caught up")


@pytest.mark.usefixtures("real_kafka", "logger")
def test_a_topic_made_anew_loses_nothing(world: World) -> None:
    world.send(100)
    world.settled()
    topic = world.kafka.topic_interactions
    world.producer.close()  # it would make the topic that it misses
    admin = KafkaAdminClient(**client_config(world.kafka))
    admin.delete_topics([topic])
    until(lambda: topic not in admin.list_topics())
    admin.create_topics([NewTopic(topic, 2, 1)])
    admin.close()
    world.producer = KafkaProducer(**client_config(world.kafka))
    world.send(300)  # offsets begin anew, and soon pass those of before
    world.settled()
    assert len({life for _, life in world.log.known_lives()}) == 2
