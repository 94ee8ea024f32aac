"""A lease in Redis: a key with a time to live, and the value beside it, replaced by a script that checks the key."""

from __future__ import annotations

import uuid
from typing import cast

from shared.adapters.redis_client import RedisConnection
from shared.adapters.settings import RedisSettings

# KEYS: the lease; ARGV: who asks, time to live in ms.
_HOLD = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end return 1"
# KEYS: the lease, the value; ARGV: who asks, the new value.
_WRITE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[2], ARGV[2])
return 1
"""


class RedisLease(RedisConnection):
    """The Lease port. One instance is one would-be holder; ttl_s: after so long without ``hold`` it is another's."""

    def __init__(self, settings: RedisSettings, name: str, ttl_s: float) -> None:
        super().__init__(settings)
        self._me = uuid.uuid4().hex
        self._key, self._value = f"{settings.redis_prefix}{name}:lease", f"{settings.redis_prefix}{name}"
        self._ttl_ms = round(1000 * ttl_s)
        self._hold = self._redis.register_script(_HOLD)
        self._release = self._redis.register_script(_RELEASE)
        self._write = self._redis.register_script(_WRITE)

    def hold(self) -> bool:
        """See Lease."""
        return bool(self._call(lambda: self._hold(keys=[self._key], args=[self._me, self._ttl_ms])))

    def release(self) -> None:
        """See Lease."""
        self._call(lambda: self._release(keys=[self._key], args=[self._me]))

    def read(self) -> bytes | None:
        """See Lease."""
        return self._call(lambda: cast("bytes | None", self._redis.get(self._value)))

    def write(self, value: bytes) -> bool:
        """See Lease."""
        return bool(self._call(lambda: self._write(keys=[self._key, self._value], args=[self._me, value])))

    def close(self) -> None:
        """Give the connection back; the lease is kept until its time is over."""
        self._redis.close()
