"""The port of a service that serves no other HTTP: on what address, and what it answers."""

from __future__ import annotations

import socket

import httpx
import pytest
from prometheus_client import CollectorRegistry

from shared.adapters.health import HealthServer


@pytest.mark.parametrize(
    ("host", "asked"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("::", "127.0.0.1")]
)
def test_it_answers_on_either_kind_of_address(host: str, asked: str):
    if ":" in host and not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    server = HealthServer(host, 0, lambda: (False, {"redis": "away"}), CollectorRegistry())
    server.start()
    try:
        assert httpx.get(f"http://{asked}:{server.port}/healthz").status_code == 200
        ready = httpx.get(f"http://{asked}:{server.port}/readyz")
        assert (ready.status_code, ready.json()) == (503, {"ready": False, "redis": "away"})
        assert httpx.get(f"http://{asked}:{server.port}/metrics").status_code == 200
        assert httpx.get(f"http://{asked}:{server.port}/").status_code == 404
    finally:
        server.stop()
