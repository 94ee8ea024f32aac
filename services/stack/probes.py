"""Is it up? One question to each kind of server, asked over its own protocol, answered within a second."""

from __future__ import annotations

import http.client
import socket

_TIMEOUT_S = 1.0


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now (another process may still take it)."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def redis_answers(port: int) -> bool:
    """Whether the Redis on 127.0.0.1 takes commands; not while it loads its file."""
    try:
        with socket.create_connection(("127.0.0.1", port), _TIMEOUT_S) as connection:
            connection.settimeout(_TIMEOUT_S)
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")
    except OSError:
        return False


def not_ready(host: str, port: int) -> str:
    """Empty when ``/readyz`` answers 200, else why it does not, in one line."""
    connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        body = answer.read(2000).decode("utf-8", "replace").strip()
        return "" if answer.status == 200 else f"/readyz answers {answer.status}: {body}"
    except (OSError, http.client.HTTPException) as error:
        return f"/readyz: {error}"
    finally:
        connection.close()
