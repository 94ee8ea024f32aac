"""Kafka and Redis in containers, by testcontainers: with the images and the settings of docker-compose.yml.

Where no engine answers, or it has no such image and cannot get one, there are none: see ``usable``. NO_CONTAINERS=1
does without them in any case.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from functools import cache

import docker
import redis
from docker.errors import DockerException
from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer

from shared.adapters.kafka_reader import OffsetReader
from shared.adapters.settings import KafkaSettings
from shared.core.errors import Unavailable
from tests import compose_files
from tests.servers import free_port, until

_START_S = 120.0
_ENGINE_S = 20
_EXTERNAL = 9094  # the listener of docker-compose.yml for clients outside the network


@cache
def _have(image: str) -> bool:
    """Whether the engine has the image now, fetched if need be."""
    with contextlib.closing(docker.from_env(timeout=_ENGINE_S)) as engine:
        try:
            engine.images.get(image)
        except docker.errors.ImageNotFound:
            try:
                engine.images.pull(image)
            except DockerException as error:
                print(f"no container of {image}: {error}", file=sys.stderr)
                return False
        return True


@cache
def usable(service: str) -> bool:
    """Whether this service of docker-compose.yml can be had as a container."""
    if os.environ.get("NO_CONTAINERS", "") not in ("", "0", "false"):
        return False
    try:
        with contextlib.closing(docker.from_env(timeout=_ENGINE_S)) as engine:
            engine.ping()
        # Testcontainers' own container, which removes the others after a crash of the tests; without it they stay.
        if not _have(testcontainers_config.ryuk_image):
            testcontainers_config.ryuk_disabled = True
        return _have(compose_files.services()[service]["image"])
    except DockerException:
        return False


@contextlib.contextmanager
def redis_container() -> Iterator[str]:
    """The URL of a Redis with the flags of docker-compose.yml."""
    service = compose_files.services()["redis"]
    with DockerContainer(service["image"]).with_exposed_ports(6379).with_command(service["command"]) as container:
        host, port = container.get_container_host_ip(), int(container.get_exposed_port(6379))

        def answers() -> bool:
            with contextlib.closing(redis.Redis(host, port)) as client, contextlib.suppress(redis.RedisError):
                return bool(client.ping())
            return False

        until(answers, _START_S, f"{service['image']} to answer")
        yield f"redis://{host}:{port}/0"


@contextlib.contextmanager
def kafka_container() -> Iterator[str]:
    """The address of a Kafka with the settings of docker-compose.yml; clients are told the port of this machine."""
    service, port = compose_files.services()["kafka"], free_port()
    container = DockerContainer(service["image"]).with_bind_ports(_EXTERNAL, port)
    host = container.get_docker_client().host()
    for name, value in service["environment"].items():
        container.with_env(name, str(value))
    container.with_env("KAFKA_ADVERTISED_LISTENERS", f"INTERNAL://localhost:9092,EXTERNAL://{host}:{port}")
    with container:
        reader = OffsetReader(KafkaSettings(kafka_bootstrap_servers=f"{host}:{port}"))

        def answers() -> bool:
            with contextlib.suppress(Unavailable):
                reader.end_offsets("any")
                return True
            return False

        until(answers, _START_S, f"{service['image']} to answer")
        reader.close()
        yield f"{host}:{port}"
