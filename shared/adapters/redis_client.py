"""What all our Redis clients share: how to connect, and how errors are told."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from typing import Any, TypeVar, cast

import redis
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.retry import Retry

from shared.adapters.settings import RedisSettings
from shared.core.errors import SettingsInvalid, Unavailable

T = TypeVar("T")

_WRONG_HOST = (62, 64)
"""OpenSSL's verification errors for a certificate of another host name, or of another IP address."""


def client_options(settings: RedisSettings) -> dict[str, Any]:
    """What every client is told besides the URL. Raises SettingsInvalid."""
    options: dict[str, Any] = {
        "socket_timeout": settings.redis_timeout_s,
        "socket_connect_timeout": settings.redis_timeout_s,
    }
    if settings.redis_username:
        options["username"] = settings.redis_username
    if settings.redis_password.get_secret_value():
        options["password"] = settings.redis_password.get_secret_value()
    files = {name: getattr(settings, f"redis_ssl_{name}") for name in ("ca_certs", "certfile", "keyfile")}
    given = {f"ssl_{name}": path for name, path in files.items() if path}
    for name, path in given.items():
        if not os.access(path, os.R_OK):
            raise SettingsInvalid(f"REDIS_{name.upper()}={path}: there is no such file, or it may not be read")
    if settings.redis_url.get_secret_value().startswith("rediss://"):
        return {**options, **given, "ssl_check_hostname": settings.redis_ssl_check_hostname}
    if given:
        raise SettingsInvalid(f"REDIS_{next(iter(given)).upper()} is set, but REDIS_URL does not begin with rediss://")
    return options


def connect(settings: RedisSettings) -> redis.Redis:
    """A client. No silent retries: whoever holds state must know that the connection broke. Raises SettingsInvalid."""
    options = client_options(settings)
    parsed_url(settings)
    return redis.Redis.from_url(settings.redis_url.get_secret_value(), retry=Retry(NoBackoff(), 0), **options)


def parsed_url(settings: RedisSettings) -> dict[str, Any]:
    """host, port, db and so on of REDIS_URL. Raises SettingsInvalid."""
    try:
        return dict(parse_url(settings.redis_url.get_secret_value()))  # type: ignore[no-untyped-call]
    except ValueError:
        # Not shown: the error quotes what it could not read, which may be a part of the password.
        raise SettingsInvalid(
            "REDIS_URL is no redis://, rediss:// or unix:// URL (in a password, characters such as / # ? @ % must be"
            " percent-encoded; or use REDIS_PASSWORD)"
        ) from None


def told(error: Exception, tls: bool = False) -> str:
    """The error in words, with the setting that may be at fault."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            if cause.verify_code in _WRONG_HOST:
                settings = "REDIS_URL, REDIS_SSL_CHECK_HOSTNAME"
                return f"its certificate is not for this host ({settings}): {cause.verify_message}"
            return f"its certificate is not trusted (REDIS_SSL_CA_CERTS): {cause.verify_message}"
        if isinstance(cause, ssl.SSLError):
            hint = "does it speak TLS (REDIS_URL), and accept our certificate (REDIS_SSL_CERTFILE, REDIS_SSL_KEYFILE)?"
            return f"no TLS connection: {hint} {cause.reason or cause}"
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, redis.AuthenticationError):
        return f"it does not accept REDIS_USERNAME and REDIS_PASSWORD (or those in REDIS_URL): {error}"
    if isinstance(error, redis.exceptions.NoPermissionError) or "NOPERM" in str(error):
        return f"the ACL of REDIS_USERNAME is too narrow, see deploy/SECURITY.md: {error}"
    if tls and isinstance(error, redis.TimeoutError):
        return f"{error} (if it speaks no TLS on this port: REDIS_URL)"
    return str(error)


class RedisConnection:
    """A client whose errors name the server."""

    def __init__(self, settings: RedisSettings) -> None:
        self._redis = connect(settings)
        kwargs = self._redis.connection_pool.connection_kwargs
        self.address = f"{kwargs.get('host', kwargs.get('path'))}:{kwargs.get('port', '')}"
        self._tls = settings.redis_url.get_secret_value().startswith("rediss://")

    def _call(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except redis.RedisError as error:
            raise Unavailable(f"Redis at {self.address}: {told(error, self._tls)}") from error

    def run(self, *command: str | bytes | int) -> object:
        """One command. Raises Unavailable."""
        return self._call(lambda: cast("object", self._redis.execute_command(*command)))  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Give the connections back."""
        self._redis.close()
