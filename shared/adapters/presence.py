"""What each process of a kind says of itself, and all hear: a hash in Redis whose fields go stale. Twin in memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import cast

from shared.adapters.redis_commands import RedisCommands
from shared.adapters.settings import RedisSettings
from shared.core.errors import Unavailable

# KEYS: the hash; ARGV: who speaks, ms until it goes stale, what is said. One clock, Redis' own, tells what is stale.
# Answers name and word of all that are not.
_TELL = """
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local ttl = tonumber(ARGV[2])
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f:', now) .. ARGV[3])
redis.call('PEXPIRE', KEYS[1], ttl)
local all, heard = redis.call('HGETALL', KEYS[1]), {}
for i = 1, #all, 2 do
  local at, word = string.match(all[i + 1], '^(%d+):(.*)$')
  if at and now - tonumber(at) <= ttl then
    heard[#heard + 1] = all[i]
    heard[#heard + 1] = word
  else
    redis.call('HDEL', KEYS[1], all[i])
  end
end
return heard
"""


class RedisPresence:
    """``me`` is to be another name in each process. Words are text without line breaks, such as JSON."""

    def __init__(self, settings: RedisSettings, kind: str, me: str, ttl_s: float) -> None:
        self._redis = RedisCommands(settings, kind)
        self._me, self._ttl_ms = me, round(1000 * ttl_s)

    def tell(self, word: bytes) -> dict[str, bytes]:
        """Say this for ``ttl_s``; what all say now, oneself included. Raises Unavailable."""
        said = self._redis.run("EVAL", _TELL, 1, self._redis.key, self._me, self._ttl_ms, word)
        heard = cast("list[bytes]", said)
        return {name.decode(): word for name, word in zip(heard[::2], heard[1::2], strict=True)}

    def close(self) -> None:
        """Give the connection back."""
        self._redis.close()


class PresenceServer:
    """What several MemoryPresence share. ``available = False`` makes every call raise Unavailable."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.available = True
        self.words: dict[str, tuple[float, bytes]] = {}


class MemoryPresence:
    """The same in memory; seconds are the server's clock's."""

    def __init__(self, server: PresenceServer, me: str, ttl_s: float) -> None:
        self._server, self._me, self._ttl_s = server, me, ttl_s

    def tell(self, word: bytes) -> dict[str, bytes]:
        """See RedisPresence."""
        if not self._server.available:
            raise Unavailable("the presence server in memory was switched off")
        now = self._server.clock()
        self._server.words[self._me] = (now, word)
        self._server.words = {n: said for n, said in self._server.words.items() if now - said[0] <= self._ttl_s}
        return {name: word for name, (_, word) in self._server.words.items()}

    def close(self) -> None:
        """Nothing to give back."""
