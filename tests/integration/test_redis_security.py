"""Redis behind TLS and an ACL: what is wrong is said with the setting. That it works: the contract suites."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

import pytest
import redis

from shared.adapters.redis_store import RedisStateStore
from shared.adapters.settings import RedisSettings
from shared.core.errors import SettingsInvalid, Unavailable
from tests.certificates import Authority
from tests.secure_redis import PASSWORD, SecureRedis
from tests.security_examples import example, settings_of
from tests.servers import free_port, missing, redis_server_path, until


def test_the_example_names_settings_that_exist_and_works(secure_redis: SecureRedis, monkeypatch: pytest.MonkeyPatch):
    assert settings_of(example("redis-tls")).keys() == secure_redis.environment().keys()
    for name, value in secure_redis.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("REDIS_PASSWORD", raising=False)
    store = RedisStateStore(RedisSettings())
    assert len(store.server_id().partition("/")[0]) == 40
    store.close()


def test_the_files_for_compose_let_one_user_in_and_nobody_else(tmp_path: Path):
    script = example("compose-secrets-files")
    subprocess.run(["bash", "-euc", script], cwd=tmp_path, check=True, capture_output=True, timeout=30)
    users, password = tmp_path / "secrets" / "redis_users", tmp_path / "secrets" / "redis_password"
    assert (users.parent.stat().st_mode & 0o777, password.stat().st_mode & 0o777) == (0o700, 0o644)
    may = example("redis-acl").split("~", 1)[1].strip()
    assert users.read_text().strip().endswith(may), "the same rights as in the example for a server of your own"
    path, port = redis_server_path(), free_port()
    if path is None:
        missing("no redis-server: install redis-server")
    with subprocess.Popen([path, "--port", str(port), "--aclfile", str(users), "--dir", tmp_path, "--save", "",
                           "--bind", "127.0.0.1"], stdout=subprocess.DEVNULL) as server:  # fmt: skip
        try:
            settings = RedisSettings(
                redis_url=f"redis://127.0.0.1:{port}/0",
                redis_username="driftwood",
                redis_password=password.read_text().strip(),
            )

            def told() -> bool:
                with contextlib.suppress(Unavailable), contextlib.closing(RedisStateStore(settings)) as store:
                    return bool(store.server_id())
                return False

            until(told, 20, "the user comes in")
            with contextlib.closing(redis.Redis(port=port)) as nobody, pytest.raises(redis.AuthenticationError):
                nobody.ping()
        finally:
            server.kill()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"redis_password": "wr0ng-s3cret"}, "REDIS_USERNAME and REDIS_PASSWORD"),
        ({"redis_ssl_ca_certs": "OTHER"}, "not trusted .REDIS_SSL_CA_CERTS"),
        ({"redis_url": "rediss://127.0.0.2:PORT/0"}, "not for this host .REDIS_URL, REDIS_SSL_CHECK_HOSTNAME"),
        ({"redis_ssl_certfile": "", "redis_ssl_keyfile": ""}, "REDIS_SSL_CERTFILE"),
        ({"redis_ssl_certfile": "OTHER", "redis_ssl_keyfile": "OTHER"}, "REDIS_SSL_CERTFILE"),
        ({"redis_url": "rediss://127.0.0.1:PLAIN/0"}, "TLS on this port: REDIS_URL"),
        ({"redis_prefix": "not-ours:"}, "ACL of REDIS_USERNAME is too narrow"),
    ],
)
def test_what_is_wrong_is_said_with_the_setting(
    secure_redis: SecureRedis, tmp_path: Path, changes: dict[str, str], says: str
):
    other = Authority(tmp_path, "another authority")
    certificate, key = other.issue("driftwood", [])
    files = {"redis_ssl_ca_certs": other.ca, "redis_ssl_certfile": certificate, "redis_ssl_keyfile": key}
    changes = {name: str(files[name]) if value == "OTHER" else value for name, value in changes.items()}
    ports = {"PORT": str(secure_redis.port), "PLAIN": str(secure_redis.plain_port)}
    if url := changes.get("redis_url"):
        changes["redis_url"] = next(url.replace(word, port) for word, port in ports.items() if word in url)
    store = RedisStateStore(secure_redis.settings(redis_timeout_s=1, **changes))
    with pytest.raises(Unavailable, match=says) as error:
        store.read(["u"])
    assert "s3cret" not in str(error.value)
    assert PASSWORD not in str(error.value)


def test_files_for_tls_without_tls_are_refused(secure_redis: SecureRedis):
    with pytest.raises(SettingsInvalid, match="REDIS_SSL_CA_CERTS is set, but REDIS_URL"):
        RedisStateStore(secure_redis.settings(redis_url=f"redis://127.0.0.1:{secure_redis.plain_port}/0"))


def test_a_file_that_is_not_there_is_named(secure_redis: SecureRedis):
    with pytest.raises(SettingsInvalid, match="REDIS_SSL_CA_CERTS=/nowhere"):
        RedisStateStore(secure_redis.settings(redis_ssl_ca_certs="/nowhere"))


@pytest.mark.parametrize("url", ["redis://:pass/w0rd@host:6379/0", "redis://host:s3cret/0", "s3cret", "http://s3cret"])
def test_a_url_that_cannot_be_read_is_not_shown(url: str):
    with pytest.raises(SettingsInvalid, match="REDIS_URL is no") as error:
        RedisStateStore(RedisSettings(redis_url=url))  # type: ignore[arg-type]
    assert not any(secret in str(error.value) for secret in ("w0rd", "s3cret", ":pass"))
    assert error.value.__cause__ is None
