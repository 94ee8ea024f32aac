"""Is it up? One question to each kind of server, asked over its own protocol, answered within a second.

    python -m services.stack.probes 8080

asks a service on this machine whether it is ready, for the health checks of containers; exits 1 and says why not.
"""

from __future__ import annotations

import http.client
import socket
import sys

_TIMEOUT_S = 1.0
_PATIENT_S = 5.0  # of a health check, which is not in a hurry


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


def not_ready(host: str, port: int, timeout_s: float = _TIMEOUT_S) -> str:
    """Empty when ``/readyz`` answers 200, else why it does not, in one line."""
    connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        body = answer.read(2000).decode("utf-8", "replace").strip()
        return "" if answer.status == 200 else f"/readyz answers {answer.status}: {body}"
    except (OSError, http.client.HTTPException) as error:
        return f"/readyz: {error}"
    finally:
        connection.close()


def main(arguments: list[str]) -> int:
    """See the module. 2: the port is none."""
    if len(arguments) != 1 or not arguments[0].isdigit():
        print("say the port, as in: python -m services.stack.probes 8080", file=sys.stderr)
        return 2
    why = not_ready("127.0.0.1", int(arguments[0]), _PATIENT_S)
    if why:
        print(why)
    return 1 if why else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
