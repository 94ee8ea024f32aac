"""Recognise the embedded broker (librdkafka's mock cluster), which kafka-python cannot find out about by itself."""

from __future__ import annotations

import socket
import struct

from shared.adapters.settings import KafkaSettings

_API_VERSIONS = 18  # the request type of the Kafka protocol that asks what else the broker understands
_REQUEST = struct.pack(">ihhih", 10, _API_VERSIONS, 0, 1, -1)  # size, type, version, correlation id, no client id
_TIMEOUT_S = 3.0


def recognise(settings: KafkaSettings) -> KafkaSettings:
    """The same settings, with KAFKA_API_VERSION=2.0 where the broker needs it and nothing was said.

    A broker that knows ApiVersions only up to version 2 is the mock cluster or Kafka before 2.4. The mock answers newer
    versions with bytes that kafka-python cannot read, and a client would try again until it times out. Where the broker
    cannot be reached, or wants TLS or a password, the settings come back as they are: the client says what is wrong.
    """
    if settings.kafka_api_version or settings.kafka_security_protocol != "PLAINTEXT":
        return settings
    for server in settings.kafka_bootstrap_servers.split(","):
        newest = _newest_api_versions(server.strip())
        if newest is not None:
            return settings.model_copy(update={"kafka_api_version": "2.0"}) if newest < 3 else settings
    return settings


def _newest_api_versions(server: str) -> int | None:
    """The newest version of ApiVersions that the broker at ``host:port`` knows; None when it does not say."""
    host, _, port = server.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _TIMEOUT_S) as connection:
            connection.settimeout(_TIMEOUT_S)
            connection.sendall(_REQUEST)
            (size,) = struct.unpack(">i", receive(connection, 4))
            answer = receive(connection, min(size, 1 << 16))
        error, count = struct.unpack_from(">hi", answer, 4)
        ranges = [struct.unpack_from(">hhh", answer, 10 + 6 * n) for n in range(count)]
    except (OSError, ValueError, struct.error):
        return None
    newest = [last for kind, _, last in ranges if kind == _API_VERSIONS]
    return newest[0] if newest and not error else None


def receive(connection: socket.socket, size: int) -> bytes:
    """Exactly so many bytes. Raises ConnectionError where the other side closed before."""
    data = b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        if not more:
            raise ConnectionError("closed")
        data += more
    return data
