"""Servers and names for all tests. See tests/servers.py for where the servers come from."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest
import torch

from shared.adapters.kafka_reader import ensure_topics
from shared.adapters.settings import KafkaSettings, RedisSettings
from tests import containers, servers
from tests.secure_redis import SecureRedis

# Two files of tests run at once, each with servers beside it: threads of torch would wait for one another.
torch.set_num_threads(1)

# Two cores and many servers: how long an example takes says nothing.
hypothesis.settings.register_profile("driftwood", deadline=None)
hypothesis.settings.load_profile("driftwood")


def _missing(what: str) -> None:
    """Skip on a developer's machine, fail in CI: what should be there and is not must not go unseen."""
    if servers.IN_CI:
        pytest.fail(what)
    pytest.skip(what)


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Redis."""
    if url := os.environ.get("REDIS_URL"):
        yield url
    elif containers.usable("redis"):
        with containers.redis_container() as (_, url):
            yield url
    elif servers.redis_server_path() is None:
        _missing("no redis-server: set REDIS_URL, start Docker, or install redis-server")
    else:
        server = servers.RedisServer(tmp_path_factory.mktemp("redis"), fsync="everysec")
        server.start()
        yield server.url
        server.stop()


@pytest.fixture(scope="module", autouse=True)
def no_kafka_client_left_open() -> Iterator[None]:
    """One that is not closed looks for its broker for ever, and disturbs the tests after it."""
    before = servers.kafka_threads()
    yield
    servers.until(lambda: not servers.kafka_threads() - before, 15, "the Kafka clients of this file are closed")


@pytest.fixture(scope="session")
def secure_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureRedis]:
    """A real Redis behind TLS and an ACL."""
    if servers.redis_server_path() is None:
        _missing("no redis-server: install redis-server")
    server = SecureRedis(tmp_path_factory.mktemp("secure-redis"))
    server.start()
    yield server
    server.stop()


@dataclass(frozen=True)
class Broker:
    """A broker's address; ``api_version`` is "2.0" for the embedded one."""

    bootstrap: str
    api_version: str = ""


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """The best broker there is: the environment's, a container, ../shared/kafka, else the embedded one."""
    if bootstrap := os.environ.get("KAFKA_BOOTSTRAP_SERVERS"):
        yield Broker(bootstrap, os.environ.get("KAFKA_API_VERSION", ""))
    elif containers.usable("kafka"):
        with containers.kafka_container() as bootstrap:
            yield Broker(bootstrap)
    elif servers.REAL_KAFKA.exists():
        node = servers.KafkaNode(tmp_path_factory.mktemp("kafka"))
        node.start()
        yield Broker(node.bootstrap)
        node.stop()
    else:
        with servers.embedded_broker() as bootstrap:
            yield Broker(bootstrap, "2.0")


@pytest.fixture
def real_kafka(broker: Broker) -> Broker:
    """A broker that has topic ids, deletes topics and adds partitions: Apache Kafka, not the embedded one."""
    if broker.api_version:
        _missing("no Apache Kafka: set KAFKA_BOOTSTRAP_SERVERS, start Docker, or provide ../shared/kafka")
    return broker


@pytest.fixture
def kafka_settings(broker: Broker) -> KafkaSettings:
    """Topics of this test alone, made."""
    tag = uuid.uuid4().hex[:8]
    names = {
        name: f"{field.default}-{tag}"
        for name, field in KafkaSettings.model_fields.items()
        if name.startswith("topic_")
    }
    settings = KafkaSettings(kafka_bootstrap_servers=broker.bootstrap, kafka_api_version=broker.api_version, **names)
    ensure_topics(settings)
    return settings


@pytest.fixture
def redis_settings(redis_url: str) -> RedisSettings:
    """Keys of this test alone."""
    return RedisSettings(redis_url=redis_url, redis_prefix=f"test-{uuid.uuid4().hex[:8]}:")


def service_env(kafka: KafkaSettings, redis: RedisSettings, model_uri: Path | str, **extra: object) -> dict[str, str]:
    """The environment of a service process that uses these."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("KAFKA_", "REDIS_", "TOPIC_"))}
    for settings in (kafka, redis):
        for name, value in settings.model_dump().items():
            text = value.get_secret_value() if hasattr(value, "get_secret_value") else value
            env[name.upper()] = str(text)
    env |= {"MODEL_URI": str(model_uri), "LOG_FORMAT": "text"}
    return env | {k.upper(): str(v) for k, v in extra.items()}
