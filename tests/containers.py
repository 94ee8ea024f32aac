"""Kafka and Redis in containers, by testcontainers: with the images and the settings of docker-compose.yml.

The settings are those of the container as well: rights, read-only file system, memory, volume. Where no engine
answers, or it has no such image and cannot get one, there are none: see ``usable``. NO_CONTAINERS=1 does without them
in any case.
"""

from __future__ import annotations

import contextlib
import os
import sys
import uuid
from collections.abc import Iterator
from functools import cache
from typing import Any

import docker
from docker.errors import DockerException
from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer

from shared.adapters.kafka_reader import OffsetReader
from shared.adapters.settings import KafkaSettings
from shared.core.errors import Unavailable
from tests import compose_files
from tests.servers import free_port, redis_answers, until

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
def _as_composed(service: dict[str, Any]) -> Iterator[DockerContainer]:
    """A container of the service, not started yet; its volumes are made, and removed at the end."""
    volumes = {f"driftwood-test-{uuid.uuid4().hex}": place.split(":")[1] for place in service["volumes"]}
    container = DockerContainer(service["image"]).with_kwargs(
        read_only=service["read_only"],
        cap_drop=service["cap_drop"],
        cap_add=service.get("cap_add"),
        security_opt=service["security_opt"],
        mem_limit=service["mem_limit"],
    )
    container.tmpfs.update(place.split(":", 1) for place in service["tmpfs"])
    for name, path in volumes.items():
        container.with_volume_mapping(name, path, "rw")
    for name, value in service.get("environment", {}).items():
        container.with_env(name, str(value))
    if "command" in service:
        container.with_command(service["command"])
    try:
        yield container
    finally:
        with contextlib.closing(docker.from_env(timeout=_ENGINE_S)) as engine:
            for name in volumes:
                with contextlib.suppress(docker.errors.NotFound):
                    engine.volumes.get(name).remove(force=True)


@contextlib.contextmanager
def redis_container() -> Iterator[tuple[DockerContainer, str]]:
    """A Redis with the flags of docker-compose.yml, started, and its URL: the same after a restart."""
    service, port = compose_files.services()["redis"], free_port()
    with _as_composed(service) as made, made.with_bind_ports(6379, port) as container:
        url = f"redis://{container.get_container_host_ip()}:{port}/0"
        until(lambda: redis_answers(url), _START_S, f"{service['image']} to answer")
        yield container, url


@contextlib.contextmanager
def kafka_container() -> Iterator[str]:
    """The address of a Kafka with the settings of docker-compose.yml; clients are told the port of this machine."""
    service, port = compose_files.services()["kafka"], free_port()
    with _as_composed(service) as made:
        host = made.get_docker_client().host()
        made.with_env("KAFKA_ADVERTISED_LISTENERS", f"INTERNAL://localhost:9092,EXTERNAL://{host}:{port}")
        made.with_bind_ports(_EXTERNAL, port).start()
        try:
            reader = OffsetReader(KafkaSettings(kafka_bootstrap_servers=f"{host}:{port}"))

            def answers() -> bool:
                with contextlib.suppress(Unavailable):
                    reader.end_offsets("any")
                    return True
                return False

            until(answers, _START_S, f"{service['image']} to answer")
            reader.close()
            yield f"{host}:{port}"
        finally:
            made.stop()
