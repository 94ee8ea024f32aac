"""A redis-server with TLS only and one user, as deploy/SECURITY.md shows it."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
from pathlib import Path

import redis

from shared.adapters.settings import RedisSettings
from tests.certificates import Authority
from tests.security_examples import example
from tests.servers import free_port, redis_server_path, until

PASSWORD = "r3dis-s3cret-of-the-test"


class SecureRedis:
    """``port`` speaks TLS, ``plain_port`` does not, and both know no user but ``driftwood``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority(folder / "authority")
        self.certificate, self.key = self.authority.issue("driftwood", [])
        self.port, self.plain_port = free_port(), free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        path = redis_server_path()
        assert path is not None
        server_cert, server_key = self.authority.issue("redis", ["127.0.0.1"])
        acl = example("redis-acl", PASSWORD_SHA256=hashlib.sha256(PASSWORD.encode()).hexdigest())
        (self.folder / "users.acl").write_text(f"user default off\n{acl}")
        with (self.folder / "redis.log").open("wb") as log:
            self.process = subprocess.Popen(
                [path, "--port", str(self.plain_port), "--tls-port", str(self.port), "--tls-cert-file", server_cert,
                 "--tls-key-file", server_key, "--tls-ca-cert-file", self.authority.ca, "--dir", self.folder,
                 "--aclfile", self.folder / "users.acl", "--save", "", "--bind", "127.0.0.1", "127.0.0.2"],
                stdout=log,
            )  # fmt: skip
        until(self._answers, 20, f"redis-server with TLS, see {self.folder}/redis.log")

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "redis.log").read_text()
        with contextlib.closing(redis.Redis(port=self.plain_port, protocol=2)) as client:
            try:
                return bool(client.ping())
            except redis.AuthenticationError:
                return True
            except redis.RedisError:
                return False

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def environment(self) -> dict[str, str]:
        """The example's settings, for this server."""
        (self.folder / "password").write_text(PASSWORD + "\n")
        return {
            "REDIS_URL": f"rediss://127.0.0.1:{self.port}/0",
            "REDIS_USERNAME": "driftwood",
            "REDIS_PASSWORD_FILE": str(self.folder / "password"),
            "REDIS_SSL_CA_CERTS": str(self.authority.ca),
            "REDIS_SSL_CERTFILE": str(self.certificate),
            "REDIS_SSL_KEYFILE": str(self.key),
        }

    def settings(self, **changes: object) -> RedisSettings:
        """The same as settings."""
        named = {k.lower(): v for k, v in self.environment().items() if not k.endswith("_FILE") or "PASSWORD" not in k}
        return RedisSettings(**{**named, "redis_password": PASSWORD, **changes})  # type: ignore[arg-type]
