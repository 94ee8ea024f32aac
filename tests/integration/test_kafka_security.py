"""Kafka behind TLS, SASL, client certificates and ACLs; and the whole system behind closed doors."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from shared.adapters.kafka import KafkaInteractionSource, KafkaPublisher
from shared.adapters.kafka_client import TopicAdmin
from shared.adapters.kafka_reader import KafkaReader
from shared.adapters.settings import ConsumerSettings, KafkaSettings
from shared.core.errors import Unavailable
from tests.certificates import Authority
from tests.integration.secured_services import Services
from tests.secure_kafka import SecureKafka
from tests.secure_redis import SecureRedis
from tests.security_examples import example
from tests.servers import REAL_KAFKA, ROOT, until


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureKafka]:
    if not REAL_KAFKA.exists():
        pytest.skip("needs a broker that this test can set up: Apache Kafka in ../shared/kafka")
    broker = SecureKafka(tmp_path_factory.mktemp("secure-kafka"))
    broker.start()
    yield broker
    broker.stop()


@pytest.mark.parametrize("listener", ["kafka-sasl", "kafka-mtls"])
def test_what_is_published_is_read(kafka: SecureKafka, listener: str):
    settings = kafka.settings(listener)
    publisher = KafkaPublisher(settings)
    publisher.send(settings.topic_interactions, listener.encode(), b"hello")
    publisher.flush(20)
    publisher.close()
    group = ConsumerSettings(consumer_group=f"driftwood-test-{listener}")
    source = KafkaInteractionSource(settings, group)
    keys: list[bytes | None] = []

    def read() -> bool:
        polled = source.poll(0.2, 100)
        for partition in polled.assigned:
            source.seek(partition, 0)
        keys.extend(record.key for records in polled.records.values() for record in records)
        return listener.encode() in keys

    until(read, 30, "the record")
    source.close()


def test_who_makes_the_topics_must_be_allowed_to(kafka: SecureKafka):
    fields = KafkaSettings.model_fields
    topics = {name.upper(): f"made-here-{fields[name].default}" for name in fields if name.startswith("topic_")}

    def make(**changes: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **kafka.environment(), **topics, **changes}
        command = [sys.executable, "-m", "services.stack.topics"]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)

    refused = make()
    assert refused.returncode == 1
    assert "driftwood may not make the topic made-here-interactions (operation Create)" in refused.stderr
    assert refused.stderr.count("\n") == 1
    kafka.run(example("kafka-acls-topics").replace("--topic ", "--topic made-here-"))
    made = make(KAFKA_SASL_USERNAME="driftwood-topics")
    assert made.returncode == 0, made.stderr
    assert made.stdout.count("made-here-") == len(topics) == 6
    assert make(KAFKA_SASL_USERNAME="driftwood-topics").stdout == "made: none, all are there\n"


def test_what_the_acls_do_not_give_is_refused_and_named(kafka: SecureKafka):
    reader = KafkaReader(kafka.settings(), "interactions", "another-group")
    with pytest.raises(Unavailable, match="uthorization"):
        reader.poll(10.0, 1)
    reader.close()


@pytest.mark.parametrize(
    ("listener", "changes", "says"),
    [
        ("kafka-sasl", {"kafka_sasl_password": "wr0ng-s3cret"}, "KAFKA_SASL_USERNAME and KAFKA_SASL_PASSWORD"),
        ("kafka-sasl", {"kafka_sasl_username": "nobody"}, "KAFKA_SASL_USERNAME and KAFKA_SASL_PASSWORD"),
        ("kafka-sasl", {"kafka_sasl_mechanism": "PLAIN"}, r"offers SCRAM-SHA-512 \(KAFKA_SASL_MECHANISM=PLAIN"),
        ("kafka-sasl", {"kafka_ssl_cafile": "OTHER"}, "not trusted .KAFKA_SSL_CAFILE="),
        ("kafka-sasl", {"kafka_ssl_cafile": "/nowhere"}, "KAFKA_SSL_CAFILE=/nowhere: No such file"),
        ("kafka-sasl", {"kafka_bootstrap_servers": "127.0.0.1"}, "not for '127.0.0.1': .*KAFKA_BOOTSTRAP_SERVERS"),
        ("kafka-sasl", {"kafka_security_protocol": "SSL"}, "wants SASL.*KAFKA_SECURITY_PROTOCOL=SSL"),
        ("kafka-sasl", {"kafka_security_protocol": "PLAINTEXT"}, "want TLS.*KAFKA_SECURITY_PROTOCOL=PLAINTEXT"),
        ("kafka-mtls", {"kafka_security_protocol": "SASL_SSL"}, "does not use SASL|our certificate"),
        ("kafka-mtls", {"kafka_ssl_certfile": "", "kafka_ssl_keyfile": ""}, "our certificate .KAFKA_SSL_CERTFILE"),
        ("kafka-mtls", {"kafka_ssl_certfile": "OTHER", "kafka_ssl_keyfile": "OTHER"}, "our certificate"),
        ("kafka-mtls", {"kafka_ssl_keyfile": "OTHER"}, "KAFKA_SSL_KEYFILE=.*mismatch"),
    ],
)
def test_what_is_wrong_is_said_at_once_with_the_setting(
    kafka: SecureKafka, tmp_path: Path, listener: str, changes: dict[str, str], says: str
):
    other = Authority(tmp_path, "another authority")
    certificate, key = other.issue("driftwood", [])
    files = {"kafka_ssl_cafile": other.ca, "kafka_ssl_certfile": certificate, "kafka_ssl_keyfile": key}
    changes = {name: str(files[name]) if value == "OTHER" else value for name, value in changes.items()}
    if "kafka_bootstrap_servers" in changes:
        changes["kafka_bootstrap_servers"] += f":{kafka.sasl}"
    settings = kafka.settings(listener, **changes)
    for client in (KafkaPublisher, lambda s: TopicAdmin(s).describe("interactions")):
        began = time.monotonic()
        with pytest.raises(Unavailable, match=says) as error:
            client(settings)
        assert time.monotonic() - began < 10  # kafka-python by itself: 30 s, and no reason
        assert "s3cret" not in str(error.value)


def test_a_name_that_need_not_match_is_a_setting(kafka: SecureKafka):
    address = f"127.0.0.1:{kafka.sasl}"
    lenient = kafka.settings(kafka_bootstrap_servers=address, kafka_ssl_check_hostname=False)
    admin = TopicAdmin(lenient)
    _, partitions = admin.describe("interactions")
    admin.close()
    assert partitions == [0]


def test_through_closed_doors_from_end_to_end(kafka: SecureKafka, tmp_path: Path):
    """Kafka by SASL_SSL with ACLs, Redis by TLS as an ACL user, HTTP by a key: events in, rankings out."""
    redis = SecureRedis(tmp_path / "redis")
    redis.start()
    key = "http-k3y-s3cret-of-the-test"
    hashed = hashlib.sha256(key.encode()).hexdigest()
    keys = tmp_path / "keys"
    keys.write_text(example("http-keys", SHOP_SHA256=hashed, NEWSLETTER_SHA256="0" * 64, PROMETHEUS_SHA256="1" * 64))
    services = Services(tmp_path, {**kafka.environment(), **redis.environment(), "HTTP_API_KEYS_FILE": str(keys)})
    try:
        for name in ("consumer", "recommender", "retrainer"):
            services.start(name)
        for name in ("consumer", "recommender", "retrainer"):
            until(lambda name=name: services.readyz(name).get("ready"), 90, f"{name} ready, see {tmp_path}")
        headers = {"Authorization": f"Bearer {key}"}
        with httpx.Client(base_url=services.address("recommender"), headers=headers, timeout=20) as client:
            now = int(time.time() * 1000)
            events = [{"user_id": "ada", "item_id": i, "event_type": "view", "ts": now} for i in ("kettle", "cup")]
            assert client.post("/v1/interactions", json=events).status_code == 202

            def ranked() -> bool:
                ranking = client.get("/v1/users/ada/recommendations").json()
                return {"kettle", "cup"} <= {item["item_id"] for item in ranking["items"]}

            until(ranked, 60, "the ranking")
            assert client.delete("/v1/users/ada").status_code == 204
            assert httpx.get(f"{services.address('recommender')}/v1/models").status_code == 401
        said = services.end()
    finally:
        services.end()
        redis.stop()
    assert "Traceback" not in said
    assert "s3cret" not in said


def test_a_wrong_password_is_told_by_readiness_and_does_not_flood_the_log(kafka: SecureKafka, tmp_path: Path):
    wrong = tmp_path / "wrong"
    wrong.write_text("wr0ng-s3cret")
    environment = {**kafka.environment(), "KAFKA_SASL_PASSWORD_FILE": str(wrong)}
    services = Services(tmp_path, {**environment, "REDIS_URL": "redis://127.0.0.1:1/0"})
    try:
        for name in ("consumer", "recommender", "retrainer"):
            services.start(name)
        for name, part in (("consumer", "stream"), ("recommender", "kafka"), ("retrainer", "session_log")):

            def tells(name: str = name, part: str = part) -> bool:
                return "KAFKA_SASL_PASSWORD" in str(services.readyz(name).get(part))

            until(tells, 90, f"{name} tells, see {tmp_path}")
            assert services.readyz(name)["ready"] is False
    finally:
        said = services.end()
    assert "Traceback" not in said
    assert "s3cret" not in said
    assert said.count("\n") < 150  # a line for each attempt, with pauses that grow
