"""The local stack: starts, says so, brings back what dies, and leaves nothing behind."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis

from services.stack.redis_server import redis_command
from shared.adapters.embedded import recognise
from shared.adapters.kafka import KafkaPublisher
from shared.adapters.kafka_reader import OffsetReader
from shared.adapters.settings import KafkaSettings
from tests.servers import IN_CI, RedisServer, embedded_broker, free_port, redis_server_path, until
from tests.stack_process import StackProcess, children, lives, stack_environment

pytestmark = pytest.mark.skipif(redis_server_path() is None and not IN_CI, reason="no redis-server")


def get(http_address: str, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(urlsplit(http_address).netloc, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except OSError:
        return 0, b""
    finally:
        connection.close()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackProcess]:
    with StackProcess(tmp_path_factory.mktemp("stack")) as stack:
        stack.ready()
        yield stack


def test_ready_line_says_where_everything_is(stack: StackProcess):
    ready = stack.ready()
    assert set(ready) == {"ready", "kafka", "redis", "http", "model_uri"}
    assert ready["ready"] is True
    assert stack.printed == [json.dumps(ready)]
    assert get(str(ready["http"]), "/readyz")[0] == 200
    with redis.Redis.from_url(str(ready["redis"])) as client:
        assert client.config_get("appendonly") == {"appendonly": "yes"}


def test_without_a_model_it_serves_trending(stack: StackProcess):
    status, body = get(str(stack.ready()["http"]), "/v1/users/nobody/recommendations")
    assert status == 200
    assert json.loads(body)["strategy"] == "trending"


def test_embedded_broker_is_recognised_and_has_the_topics(stack: StackProcess):
    settings = recognise(KafkaSettings(kafka_bootstrap_servers=str(stack.ready()["kafka"])))
    assert settings.kafka_api_version == "2.0"
    offsets = OffsetReader(settings)
    assert len(offsets.end_offsets("interactions")) == 4
    assert len(offsets.end_offsets("interactions.dlq")) == 4
    offsets.close()


@pytest.mark.parametrize("victim", ["consumer", "recommender", "retrainer", "redis"])
def test_events_are_served_after_a_part_was_killed(stack: StackProcess, victim: str):
    ready = stack.ready()
    with redis.Redis.from_url(str(ready["redis"])) as client:
        client.config_set("appendfsync", "always")
    before = stack.pids()[victim]
    os.kill(before, signal.SIGKILL)
    item = f"item-after-{victim}"
    value = {"user_id": victim, "item_id": item, "event_type": "view", "ts": 1_700_000_000_000}
    publisher = KafkaPublisher(recognise(KafkaSettings(kafka_bootstrap_servers=str(ready["kafka"]))))
    publisher.send("interactions", victim.encode(), json.dumps(value).encode())
    publisher.flush(30)
    publisher.close()
    after = until(lambda: (pid := stack.pids()[victim]) != before and pid, 30, f"{victim} to be started again")
    assert lives(int(after))
    until(lambda: item.encode() in get(str(ready["http"]), "/v1/users/nobody/recommendations")[1], 60, item)
    assert stack.printed == [json.dumps(ready)]
    assert any(f"{victim} (pid {before}) ended by SIGKILL" in line for line in stack.said)


def test_a_second_stack_in_the_same_folder_is_refused(stack: StackProcess):
    with StackProcess(stack.folder) as second:
        assert second.wait() == 1
    assert any("another stack runs in this folder" in line for line in second.said)
    assert second.printed == []
    assert all(lives(pid) for pid in stack.pids().values())


def test_sigterm_stops_all(tmp_path: Path):
    with StackProcess(tmp_path) as stack:
        stack.ready()
        started = children(stack.process.pid)
        assert len(started) == 5
        stack.process.send_signal(signal.SIGTERM)
        assert stack.wait() == 0
        assert not [pid for pid in started if lives(pid)]
    assert not [line for line in stack.said if "SIGKILL" in line]


def test_sigkill_leaves_no_process(tmp_path: Path):
    with StackProcess(tmp_path) as stack:
        stack.ready()
        started = children(stack.process.pid)
        stack.process.kill()
        until(lambda: not [pid for pid in started if lives(pid)], 10, "the children to end")


def test_lost_broker_ends_the_stack(tmp_path: Path):
    with StackProcess(tmp_path) as stack:
        stack.ready()
        started = children(stack.process.pid)
        os.kill(stack.pids()["broker"], signal.SIGKILL)
        assert stack.wait() == 1
        assert not [pid for pid in started if lives(pid)]
    assert any("broker ended by SIGKILL" in line for line in stack.said)


def test_stop_during_the_start_leaves_nothing(tmp_path: Path):
    with StackProcess(tmp_path) as stack:
        started = until(lambda: children(stack.process.pid), 30, "the first child")
        stack.process.send_signal(signal.SIGINT)
        assert stack.wait() == 0
        assert not [pid for pid in started if lives(pid)]
    assert stack.printed == []


def test_a_part_that_cannot_start_is_named(tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with StackProcess(tmp_path, REDIS_PORT=taken.getsockname()[1]) as stack:
            assert stack.wait() == 1
    assert any("redis ended with exit code 1" in line for line in stack.said)
    assert any("in use" in line for line in stack.said)  # the end of its log
    assert not children(stack.process.pid)


def test_a_wrong_setting_is_named(tmp_path: Path):
    with StackProcess(tmp_path, HTTP_PORT="many") as stack:
        assert stack.wait() == 2
    assert any("HTTP_PORT" in line for line in stack.said)


def test_given_servers_are_used_and_not_stopped(tmp_path: Path):
    server = RedisServer(tmp_path)
    server.start()
    with embedded_broker() as kafka:
        with StackProcess(tmp_path / "stack", KAFKA_BOOTSTRAP_SERVERS=kafka, REDIS_URL=server.url) as stack:
            ready = stack.ready()
            assert (ready["kafka"], ready["redis"]) == (kafka, server.url)
            assert set(stack.pids()) == {"consumer", "recommender", "retrainer"}
        assert stack.process.returncode == 0
        assert server.answers()
    server.stop()


def test_ports_and_folders_of_the_settings(tmp_path: Path):
    port, models = free_port(), tmp_path / "models"
    with StackProcess(tmp_path / "stack", HTTP_PORT=port, MODEL_URI=models) as stack:
        ready = stack.ready()
    assert ready["http"] == f"http://127.0.0.1:{port}"
    assert ready["model_uri"] == str(models)


def test_redis_command_keeps_to_this_machine(tmp_path: Path):
    command = redis_command("redis-server", 1234, tmp_path)
    assert command[command.index("--bind") + 1] == "127.0.0.1"
    assert command[command.index("--appendfsync") + 1] == "everysec"


def test_environment_of_the_tests_is_not_a_stacks():
    assert "KAFKA_BOOTSTRAP_SERVERS" not in stack_environment()
