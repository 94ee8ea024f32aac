"""The recommender as a process against real servers: the loop with the consumer, outages, damage, an orderly stop."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from shared.adapters.settings import KafkaSettings, RedisSettings
from tests.conftest import service_env
from tests.integration.recommender_process import Process
from tests.servers import ROOT, RedisServer, free_port, until
from tests.unit.recommender_twins import ITEMS, weights


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


def test_told_to_stop_while_it_reads_its_model(tmp_path: Path) -> None:
    """As when an orchestrator changes its mind: it must not begin to serve, and not wait to be killed."""
    slow = """
import sys, time
import services.recommender.__main__ as recommender
start = recommender.System.start
def slowly(system):
    print("reads", flush=True)
    time.sleep(1)
    start(system)
recommender.System.start = slowly
sys.exit(recommender.main())
"""
    nobody = KafkaSettings(kafka_bootstrap_servers=f"127.0.0.1:{free_port()}")
    redis = RedisSettings(redis_url=f"redis://127.0.0.1:{free_port()}")  # type: ignore[arg-type]
    env = service_env(nobody, redis, tmp_path / "models", http_host="127.0.0.1", http_port=free_port())
    process = subprocess.Popen([sys.executable, "-c", slow], cwd=ROOT, env=env, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"reads\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()


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
    assert process.wait(25) == 0  # Docker and Kubernetes wait for 30 s by themselves


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


def test_the_console_of_a_process_sees_stream_group_and_itself(system: Process) -> None:
    system.publish(1)
    system.start()
    system.start("consumer")
    system.send("ada", "item-1", "item-2", "item-3")

    def seen() -> bool:
        view = system.get("/v1/console").json()
        now = view["now"]
        told = (view["problems"], view["loaded"], now["events_total"], now["lag"], now["recommenders"])
        return told == ({}, "1", 3, 0, 1) and now["state_ms"] is not None and view["users"] == ["ada"]

    until(seen, 90, "the console to know of it all")
    assert system.get("/v1/users/ada").json()["recent_items"] == ["item-1", "item-2", "item-3"]
    assert system.get("/").headers["content-type"].startswith("text/html")
