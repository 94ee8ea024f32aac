"""Who may call the recommender: keys and their scopes, changes of the file of keys, rates, a full house."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry
from pydantic import ValidationError

from services.recommender.api_keys import KeyFileWatch, KeyRing, keys_of_file, keys_of_setting
from services.recommender.guard import Guard, HttpRules
from services.recommender.http_server import Keys
from services.recommender.metrics import RecommenderMetrics
from services.recommender.rate_limit import RateLimit, network_of
from shared.adapters.settings import HttpSettings
from shared.adapters.watched_file import WatchedFile
from shared.core.errors import SettingsInvalid
from tests.servers import until
from tests.unit.recommender_twins import Twin

READER, WRITER, SCRAPER = "reader-key-of-20-chars", "writer-key-of-20-chars", "scraper-key-of-20-char"
FILE = f"""
# comments and empty lines do not count
shop read,write {WRITER}
page read sha256:{hashlib.sha256(READER.encode()).hexdigest()}
prometheus metrics {SCRAPER}
"""


@pytest.fixture(scope="module")
def twin():
    keys = [*keys_of_setting("key-of-the-setting"), *keys_of_file(FILE)]
    twin = Twin(http=HttpRules(KeyRing(keys, needed=True), public_metrics=False))
    yield twin
    twin.stop()


def rejected(twin: Twin, reason: str) -> float:
    return twin.metrics.rejected.labels(reason)._value.get()


def call(twin: Twin, method: str, path: str, key: str = "", **options: object) -> httpx.Response:
    return twin.call(method, path, headers={"Authorization": f"Bearer {key}"} if key else {}, **options)


def test_both_headers_take_a_key_and_the_refusal_says_how(twin):
    path = "/v1/users/u/recommendations"
    for headers in (
        {"Authorization": f"Bearer {READER}"}, {"authorization": f"bearer {READER}"}, {"X-API-Key": READER},
        {"X-API-Key": "key-of-the-setting"},
    ):  # fmt: skip
        assert twin.call("GET", path, headers=headers).status_code == 200
    for headers in ({}, {"X-API-Key": ""}, {"Authorization": f"Basic {READER}"}, {"X-API-Key": READER[:-1]}):
        refused = twin.call("GET", path, headers=headers)
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"] == 'Bearer realm="driftwood"'
        assert "key" in refused.json()["error"]
    assert (rejected(twin, "no_key"), rejected(twin, "wrong_key")) == (3, 1)


def test_a_key_does_what_its_scopes_say(twin):
    event = {"user_id": "u", "item_id": "i", "event_type": "view", "ts": 1_700_000_000_000}
    assert call(twin, "POST", "/v1/interactions", WRITER, json=event).status_code == 202
    assert call(twin, "DELETE", "/v1/users/u", WRITER).status_code == 204
    assert call(twin, "POST", "/v1/recommendations", READER, json={"items": ["item-1"]}).status_code == 200
    assert call(twin, "GET", "/v1/models", READER).status_code == 200
    for method, path in (("POST", "/v1/interactions"), ("DELETE", "/v1/users/u"), ("GET", "/metrics")):
        refused = call(twin, method, path, READER)
        assert refused.status_code == 403
        assert "'page'" in refused.json()["error"]
    assert call(twin, "GET", "/metrics", SCRAPER).status_code == 200
    assert call(twin, "GET", "/v1/models", SCRAPER).status_code == 403
    assert rejected(twin, "scope") == 4


def test_what_is_public_and_what_only_looks_like_it(twin):
    for path in ("/healthz", "/readyz", "/docs", "/openapi.json", "/"):
        assert twin.call("GET", path).status_code in (200, 307)
    assert twin.call("GET", "/console/page.js").status_code == 404  # let through; there is none
    for path in ("/console/users", "/console/users/ada.js", "/v1/users/x.js", "/nowhere", "/metrics"):
        assert twin.call("GET", path).status_code == 401, path


def test_the_description_names_the_schemes(twin):
    described = twin.call("GET", "/openapi.json").json()
    assert set(described["components"]["securitySchemes"]) == {"bearer", "key"}
    paths = described["paths"]
    assert paths["/v1/models"]["get"]["security"] == [{"bearer": []}, {"key": []}]
    assert {"401", "403"} <= set(paths["/v1/interactions"]["post"]["responses"])
    assert "security" not in paths["/healthz"]["get"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no key"), ("# only a comment\n", "holds no key"), ("a read\n", "line 1 has 2 words"),
        ("\na read,fly some-long-enough-key\n", "line 2: scopes are metrics, read, write"),
        ("some-long-enough-key\nx read some-long-enough-key\n", "twice"),
        ("sha256:some-long\n", "line 1: behind sha256: stand 64"), (f"x read sha256:{'a' * 63}\n", "line 1: behind"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused_and_not_shown(text, says):
    with pytest.raises(SettingsInvalid, match=says) as error:
        keys_of_file(text)
    assert "some-long" not in str(error.value)


def test_a_hash_is_one_in_capitals_too_and_never_a_key_itself():
    hashed = hashlib.sha256(READER.encode()).hexdigest().upper()
    for text in (f"sha256:{hashed}", f"SHA256:{hashed}"):
        for keys in (keys_of_file(text), keys_of_setting(text)):
            ring = KeyRing(keys, needed=True)
            assert ring.find(READER.encode())
            assert not ring.find(text.encode())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("\n", "blank"), (" , ", "blank"), ("some-long-key-1\nsome-long-key-2", "key 1 has white space"),
        ("good-key-of-20-chars,# name      scopes      key", "key 2 has white space"),
        ("good-key-of-20-chars,sha256:some-long", "key 2: behind sha256:"),
    ],
)  # fmt: skip
def test_a_setting_that_holds_no_keys_opens_nothing(text, says):
    with pytest.raises(SettingsInvalid, match=f"HTTP_API_KEYS.*{says}") as error:
        keys_of_setting(text)
    assert "some-long" not in str(error.value)


def test_proxies_are_addresses_or_networks():
    assert HttpSettings(http_trusted_proxies="10.1.2.3, fd00::/8").http_trusted_proxies
    for wrong in ("10.0.0.5/8", "*", "proxy.example"):
        with pytest.raises(ValidationError, match="http_trusted_proxies"):
            HttpSettings(http_trusted_proxies=wrong)


def test_the_file_is_read_anew_and_a_damaged_one_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = tmp_path / "keys"
    path.write_text("first-key-long-enough")
    metrics = RecommenderMetrics(CollectorRegistry())
    door = Keys(keys_of_setting("key-of-the-setting"), WatchedFile(str(path), "HTTP_API_KEYS_FILE"), metrics)
    door.start()
    keys = door.ring

    def known(key: str) -> bool:
        return keys.find(key.encode()) is not None

    assert known("first-key-long-enough")
    path.write_text("second-key-long-enough")
    until(lambda: known("second-key-long-enough"), 10, "the new key")
    assert not known("first-key-long-enough")
    assert known("key-of-the-setting")
    for damage in ("two words", None, ""):
        path.unlink(missing_ok=True)
        if damage is not None:
            path.write_text(damage)
        until(lambda: door.problem, 10, "the damage is told")
        assert known("second-key-long-enough")
        path.write_text("second-key-long-enough")
        until(lambda: not door.problem, 10, "it is whole again")
    assert metrics.key_file.labels("damaged")._value.get() >= 3
    assert metrics.api_keys._value.get() == 2
    door.stop()
    assert "second-key" not in caplog.text


def test_a_link_that_is_turned_is_a_change(tmp_path: Path):
    """So Kubernetes renews the files of a secret."""
    for name in ("one", "two"):
        (tmp_path / name).write_text(f"{name}-key-long-enough")
    link = tmp_path / "keys"
    link.symlink_to("one")
    ring = KeyRing((), needed=True)
    watch = KeyFileWatch(ring, (), WatchedFile(str(link), ""), lambda good: None)
    watch.start()
    link.unlink()
    link.symlink_to("two")
    watch.look()
    assert ring.find(b"two-key-long-enough")
    watch.stop()


def test_without_its_file_the_server_does_not_start_open(tmp_path: Path):
    missing = WatchedFile(str(tmp_path / "missing"), "HTTP_API_KEYS_FILE")
    keys = Keys((), missing, RecommenderMetrics(CollectorRegistry()))
    assert keys.ring.needed
    with pytest.raises(SettingsInvalid, match="HTTP_API_KEYS_FILE"):
        keys.start()


def test_a_short_key_is_warned_of(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        keys_of_setting("short")
    assert "fewer than 16" in caplog.text


def test_a_bucket_empties_and_fills():
    now = [100.0]
    limit = RateLimit(2.0, 3, clock=lambda: now[0])
    assert [limit.take("a") for _ in range(3)] == [0.0, 0.0, 0.0]
    assert limit.take("a") == pytest.approx(0.5)
    assert limit.take("b") == 0.0
    now[0] += 0.5
    assert limit.take("a") == 0.0
    assert limit.take("a") > 0
    now[0] += 1000
    assert [limit.take("a") > 0 for _ in range(4)] == [False, False, False, True]


def test_buckets_are_bounded_and_the_oldest_goes():
    limit = RateLimit(1.0, 1, most_callers=3)
    for caller in "abc":
        limit.take(caller)
    assert limit.take("a") > 0  # used again: b is the oldest now
    limit.take("d")
    assert len(limit) == 3
    assert limit.take("a") > 0
    assert limit.take("b") == 0.0


def test_an_ipv6_network_is_one_caller():
    assert network_of("10.0.0.7") == "10.0.0.7"
    assert network_of("2001:db8:1:2:3:4:5:6") == network_of("2001:db8:1:2::9") == "2001:db8:1:2::/64"
    assert network_of("::ffff:10.0.0.7") == "10.0.0.7"
    assert network_of("not:an:address") == "not:an:address"


def test_each_key_has_a_rate_of_its_own_and_probes_have_none():
    keys = [*keys_of_setting("key-of-the-setting"), *keys_of_file(FILE)]
    twin = Twin(http=HttpRules(KeyRing(keys, needed=True), RateLimit(0.001, 2)))
    codes = [call(twin, "GET", "/v1/models", READER).status_code for _ in range(3)]
    assert codes == [200, 200, 429]
    refused = call(twin, "GET", "/v1/models", READER)
    assert int(refused.headers["retry-after"]) > 900
    assert "HTTP_RATE_PER_S" in refused.json()["error"]
    assert call(twin, "GET", "/v1/models", WRITER).status_code == 200
    assert [twin.call("GET", "/v1/models").status_code for _ in range(3)] == [401, 401, 429]  # guessing keys, too
    assert all(twin.call("GET", path).status_code == 200 for path in ("/healthz", "/readyz", "/metrics") * 3)
    assert rejected(twin, "rate") == 3
    twin.stop()


def test_a_full_house_says_so():
    metrics = RecommenderMetrics(CollectorRegistry())
    inside, leave = asyncio.Event(), asyncio.Event()

    async def slow(scope, receive, send):
        inside.set()
        await leave.wait()

    async def run() -> list[int]:
        guard = Guard(slow, HttpRules(max_requests=1), metrics)
        sent: list[dict] = []

        async def send(message):
            sent.append(message)

        def ask(path: str):
            return guard({"type": "http", "path": path, "method": "GET", "headers": []}, None, send)

        first = asyncio.create_task(ask("/v1/models"))
        await inside.wait()
        await ask("/v1/models")
        leave.set()
        await first
        await ask("/v1/models")  # there is room again: the inner application is asked, and sends nothing
        return [(m["status"], dict(m["headers"])[b"retry-after"]) for m in sent if "status" in m]

    assert asyncio.run(run()) == [(503, b"1")]
    assert metrics.rejected.labels("busy")._value.get() == 1
