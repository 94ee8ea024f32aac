"""No secret in what the services say, whatever fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.secured_services import Services
from tests.servers import RedisServer, free_port, redis_server_path, until

SECRETS = {
    "KAFKA_SASL_PASSWORD": "kafk4-s3cret",
    "KAFKA_SSL_KEY_PASSWORD": "k3y-s3cret",
    "REDIS_PASSWORD": "r3dis-s3cret",
    "HTTP_API_KEYS": "http-k3y-s3cret-one,http-k3y-s3cret-two",
}


@pytest.mark.skipif(redis_server_path() is None, reason="no redis-server")
def test_failing_servers_bring_no_secret_to_light(tmp_path: Path):
    """A Redis that wants no password from us but gets one, a Kafka that is not there."""
    redis = RedisServer(tmp_path, fsync="no")
    redis.start()
    services = Services(
        tmp_path,
        {
            **SECRETS,
            "REDIS_URL": f"redis://someone:url-s3cret@127.0.0.1:{redis.port}/0",
            "KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{free_port()}",
            "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
            "KAFKA_SASL_USERNAME": "driftwood",
            "KAFKA_SSL_CAFILE": str(tmp_path / "nowhere.pem"),
            "LOG_LEVEL": "DEBUG",
        },
    )
    shown = ""
    try:
        for name in ("consumer", "recommender", "retrainer"):
            services.start(name)
        for name, wanted in (
            ("consumer", "KAFKA_SSL_CAFILE"), ("recommender", "REDIS_PASSWORD"), ("retrainer", "REDIS_PASSWORD"),
        ):  # fmt: skip
            until(lambda n=name, w=wanted: w in str(services.readyz(n)), 90, f"{name} tells, see {tmp_path}")
            shown += str(services.readyz(name))
    finally:
        shown += services.end()
        redis.stop()
    for secret in ("s3cret", *SECRETS.values()):
        assert secret not in shown
    assert "Traceback" not in shown


def test_settings_that_cannot_work_are_named_and_not_shown(tmp_path: Path):
    (tmp_path / "keys").write_text("a read-s3cret-without-its-scope\n")
    services = Services(tmp_path, {**SECRETS, "REDIS_URL": "redis://:url/s3cret@host:1/0", "HTTP_API_KEYS_FILE": "x"})
    broken = Services(tmp_path, {**SECRETS, "REDIS_PASSWORD_FILE": str(tmp_path / "keys")})
    try:
        services.start("recommender")
        services.start("retrainer")
        broken.start("consumer")
        assert (services.exit_code("recommender"), services.exit_code("retrainer")) == (2, 2)
        assert broken.exit_code("consumer") == 2
    finally:
        broken.end()
        said = services.end()
    assert said.count("REDIS_URL is no redis://") == 2
    assert "REDIS_PASSWORD and REDIS_PASSWORD_FILE are both set" in said
    assert "s3cret" not in said
    assert "Traceback" not in said
