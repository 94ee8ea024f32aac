"""The recommender's HTTP server on a socket: bodies, heads, silence, crowds, proxies."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import httpx
import pytest
from prometheus_client import CollectorRegistry

from services.recommender.__main__ import _rules
from services.recommender.api_keys import keys_of_setting
from services.recommender.connections import ConnectionLimits
from services.recommender.http_server import Keys, http_server
from services.recommender.metrics import RecommenderMetrics
from services.simulator.demo.client import RankingClient
from shared.adapters.settings import HttpSettings, listed
from shared.core.errors import Unavailable
from tests.security_examples import example, settings_of
from tests.servers import free_port, until
from tests.unit.recommender_twins import Twin

Serve = Callable[..., "Served"]


class Served:
    """A recommender of twins behind the real server."""

    def __init__(self, **settings: object) -> None:
        http = HttpSettings(http_host="127.0.0.1", http_port=free_port(), **settings)  # type: ignore[arg-type]
        keys = Keys(
            keys_of_setting(http.http_api_keys.get_secret_value()), None, RecommenderMetrics(CollectorRegistry())
        )
        self.twin = Twin(http=_rules(http, keys))
        self.port = http.http_port
        self.url = f"http://127.0.0.1:{self.port}"
        limits = ConnectionLimits(http.http_max_connections, http.http_max_header_bytes, http.http_header_timeout_s)
        trusted = listed(http.http_trusted_proxies)
        self._server = http_server(self.twin.app, http.http_host, self.port, limits, trusted, self.twin.metrics)
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        until(lambda: self._server.started, 20, "the server")

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), 10)

    def rejected(self, reason: str) -> float:
        return float(self.twin.metrics.rejected.labels(reason)._value.get())

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(20)
        self.twin.stop()


@pytest.fixture
def serve() -> Iterator[Serve]:
    made: list[Served] = []

    def start(**settings: object) -> Served:
        made.append(Served(**settings))
        return made[-1]

    yield start
    for one in made:
        one.stop()


def answer(connection: socket.socket) -> bytes:
    """All that comes until the server ends the connection."""
    data = b""
    with contextlib.suppress(ConnectionResetError):  # it ends while we are sending
        while more := connection.recv(65536):
            data += more
    return data


HEAD = b"POST /v1/recommendations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def test_a_chunked_body_over_the_limit_is_not_read_to_its_end(serve: Serve):
    served = serve(http_max_body_bytes=2000)
    chunk = b"3e8\r\n" + b" " * 1000 + b"\r\n"
    with served.connect() as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(3):
            connection.sendall(chunk)
        said = answer(connection)  # it comes, and the connection ends, though the body has no end
    assert said.startswith(b"HTTP/1.1 413 ")
    assert b"HTTP_MAX_BODY_BYTES=2000" in said
    assert b"connection: close" in said.lower()
    with served.connect() as connection:
        connection.sendall(HEAD + b"Content-Length: 99999999\r\n\r\n")
        assert answer(connection).startswith(b"HTTP/1.1 413 ")
    assert served.rejected("body_size") == 2


def test_a_body_that_nobody_reads_ends_the_connection(serve: Serve):
    served = serve()
    with served.connect() as connection:
        connection.sendall(b"GET /v1/users/u/recommendations HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert answer(connection).startswith(b"HTTP/1.1 200 ")


def test_a_body_that_does_not_come_is_408(serve: Serve):
    served = serve(http_body_timeout_s=0.3)
    with served.connect() as connection:
        connection.sendall(HEAD + b"Content-Length: 100\r\n\r\n{")
        said = answer(connection)
    assert said.startswith(b"HTTP/1.1 408 ")
    assert b"HTTP_BODY_TIMEOUT_S=0.3" in said
    assert served.rejected("body_time") == 1


def test_a_caller_that_goes_away_in_its_body_is_no_error_of_the_server(serve: Serve):
    served = serve()
    with served.connect() as caller:
        caller.sendall(b"POST /v1/interactions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
    until(lambda: served.rejected("body_gone") == 1, 10, "the half body")
    counted = [
        sample.labels["status"]
        for metric in served.twin.metrics.requests.collect()
        for sample in metric.samples
        if sample.name.endswith("_total") and sample.value
    ]
    assert not [status for status in counted if status.startswith("5")]


def test_a_head_that_begins_behind_a_large_body_is_no_large_head(serve: Serve):
    served = serve(http_max_header_bytes=4096)
    body = b"[" + b" " * 20_000 + b"]"
    with served.connect() as caller:
        head = b"POST /v1/recommendations HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
        caller.sendall(head + body + b"GET /healthz HTTP/1.1\r\nHost:")
        assert caller.recv(100).startswith(b"HTTP/1.1 422 ")
        caller.sendall(b" x\r\n\r\n")
        until(lambda: b"HTTP/1.1 200 " in caller.recv(4096), 10, "the answer to the second")
    assert served.rejected("header_size") == 0


def test_a_head_that_does_not_end_is_408_and_silence_is_closed(serve: Serve):
    served = serve(http_header_timeout_s=0.3)
    with served.connect() as connection, served.connect() as silent:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost:")
        assert answer(connection).startswith(b"HTTP/1.1 408 ")
        assert answer(silent) == b""
    assert served.rejected("header_time") == 2


def test_a_head_over_the_limit_is_431(serve: Serve):
    served = serve(http_max_header_bytes=4096)
    for end in (b"", b"\r\n\r\n"):
        with served.connect() as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nLong: " + b"a" * 5000 + end)
            said = answer(connection)
        assert said.startswith(b"HTTP/1.1 431 ")
        assert b"HTTP_MAX_HEADER_BYTES=4096" in said
    assert served.rejected("header_size") == 2


def test_a_connection_is_kept_for_many_requests_and_large_good_bodies(serve: Serve):
    served = serve(http_max_header_bytes=4096, http_header_timeout_s=5)
    with httpx.Client(base_url=served.url) as client:
        for _ in range(20):
            assert client.get("/healthz").status_code == 200
            big = {"items": ["item-1"] * 900}  # larger than a head may be
            assert client.post("/v1/recommendations", json=big).status_code == 200
    with served.connect() as connection:  # pipelined, the last one asks for the end
        one = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
        connection.sendall(one * 5 + one[:-2] + b"Connection: close\r\n\r\n")
        assert answer(connection).count(b"HTTP/1.1 200 ") == 6
    assert not any(served.rejected(reason) for reason in ("header_size", "header_time", "body_size"))


def test_connections_beyond_the_limit_get_503(serve: Serve):
    served = serve(http_max_connections=2)
    with served.connect() as first, served.connect() as second:
        for one in (first, second):
            one.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert one.recv(100).startswith(b"HTTP/1.1 200 ")
        with served.connect() as third:
            third.sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
            assert answer(third).startswith(b"HTTP/1.1 503 ")
        for path in (b"/healthz", b"/readyz?for=traffic"):  # a full house is no reason to end the process
            with served.connect() as probe:
                probe.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n")
                assert answer(probe).startswith(b"HTTP/1.1 200 ")  # and the connection ends
        with contextlib.ExitStack() as crowd:
            silent = [crowd.enter_context(served.connect()) for _ in range(64)]
            with served.connect() as last:  # more than that are not waited for
                assert answer(last).startswith(b"HTTP/1.1 503 ")
            assert answer(silent[0]) == b""
    assert served.rejected("connections") == 2
    assert served.twin.metrics.requests.labels("rejected", "503")._value.get() == 2  # what alerts look at
    until(lambda: httpx.get(f"{served.url}/healthz").status_code == 200, 10, "there is room again")


def test_whose_word_is_taken_for_the_callers_address(serve: Serve):
    settings = {name.lower(): value for name, value in settings_of(example("http-limits")).items()}
    assert settings.keys() == {"http_rate_per_s", "http_rate_burst", "http_trusted_proxies"}
    HttpSettings(**settings)
    slow = {"http_rate_per_s": 0.001, "http_rate_burst": 1}
    direct = serve(**slow)
    behind = serve(**slow, http_trusted_proxies="127.0.0.0/8")

    def codes(served: Served) -> list[int]:
        return [
            httpx.get(f"{served.url}/v1/models", headers={"X-Forwarded-For": f"{liar}, {caller}"}).status_code
            for liar, caller in (("1.1.1.1", "10.0.0.1"), ("2.2.2.2", "10.0.0.1"), ("3.3.3.3", "10.0.0.2"))
        ]

    assert codes(direct) == [200, 429, 429]
    assert codes(behind) == [200, 429, 200]  # the last address that the proxy wrote, not what the caller wrote before


def test_the_simulated_shop_asks_with_its_key(serve: Serve):
    key = "k3y-of-the-simulated-shop"
    served = serve(http_api_keys=key)
    assert RankingClient(served.url, key).ranking("ada", 3).strategy == "trending"
    with pytest.raises(Unavailable, match="401"):
        RankingClient(served.url).ranking("ada", 3)
