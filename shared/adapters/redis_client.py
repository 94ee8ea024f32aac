"""What all our Redis clients share: how to connect, and how errors are told."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from shared.adapters.settings import RedisSettings
from shared.core.errors import Unavailable

T = TypeVar("T")


def connect(settings: RedisSettings) -> redis.Redis:
    """A client. No silent retries: whoever holds state must know that the connection broke."""
    options: dict[str, object] = {}
    if settings.redis_username:
        options["username"] = settings.redis_username
    if settings.redis_password.get_secret_value():
        options["password"] = settings.redis_password.get_secret_value()
    if settings.redis_ssl_ca_certs:
        options["ssl_ca_certs"] = settings.redis_ssl_ca_certs
    return redis.Redis.from_url(
        settings.redis_url.get_secret_value(),
        socket_timeout=settings.redis_timeout_s,
        socket_connect_timeout=settings.redis_timeout_s,
        retry=Retry(NoBackoff(), 0),
        **options,
    )


class RedisConnection:
    """A client whose errors name the server."""

    def __init__(self, settings: RedisSettings) -> None:
        self._redis = connect(settings)
        kwargs = self._redis.connection_pool.connection_kwargs
        self.address = f"{kwargs.get('host', kwargs.get('path'))}:{kwargs.get('port', '')}"

    def _call(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except redis.RedisError as error:
            raise Unavailable(f"Redis at {self.address}: {error}") from error

    def close(self) -> None:
        """Give the connections back."""
        self._redis.close()
