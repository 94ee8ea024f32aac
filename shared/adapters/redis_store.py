"""User states and progress in Redis: batched reads, and writes by compare-and-set in one round trip."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from typing import cast

from shared.adapters.redis_client import RedisConnection
from shared.adapters.settings import RedisSettings
from shared.core.errors import Unavailable
from shared.core.ports import StateWrite, StoreMemory
from shared.core.state import TOKEN_BYTES

SPECIAL = re.compile(rb"([\\*?\[\]^])")
"""What has a meaning in a pattern of Redis."""

_CHUNK = 1024
"""Users in one command: about 0.7 MB, so that Redis serves others in between."""

_KEEP_TTL = -1
QUARANTINE_S = 7 * 86400
"""How long a damaged value is kept for a person to look at."""

PROGRESS_TTL = 0
"""Progress never expires: without it the whole log would be read again."""

# ARGV[2]: run_id/master_replid/birth of the server and the data expected; "": any. A server that was a replica for a
# while has the run_id that it had before, but another replication id; one that was emptied has neither, but no birth: a
# value that was written when there was none, under the last of KEYS. Without a birth in ARGV[2], it is not looked at.
FENCE = """
if ARGV[2] ~= '' then
  local run, history, birth = string.match(ARGV[2] .. '//', '^([^/]*)/([^/]*)/([^/]*)')
  if not string.find(redis.call('INFO', 'server'), 'run_id:' .. run, 1, true)
    or not string.find(redis.call('INFO', 'replication'), 'master_replid:' .. history, 1, true)
    or birth ~= '' and redis.call('GET', KEYS[#KEYS]) ~= birth then
    return {0}
  end
end
"""
# KEYS: the values, and what the fence needs; ARGV: seconds to live (0: for ever, -1: as before), see FENCE, then token
# and value of each. Answers the indexes refused, or {0} where the fence is closed. A key of another type cannot be a
# state: it counts as absent.
CAS_BODY = f"""
local refused = {{}}
local ttl = tonumber(ARGV[1])
for i = 1, (#ARGV - 2) / 2 do
  local token = redis.pcall('GETRANGE', KEYS[i], 0, {TOKEN_BYTES - 1})
  if type(token) == 'table' then token = '' end
  if token ~= ARGV[2 * i + 1] then
    refused[#refused + 1] = i
  elseif ttl < 0 then
    redis.call('SET', KEYS[i], ARGV[2 * i + 2], 'KEEPTTL')
  elseif ttl > 0 then
    redis.call('SET', KEYS[i], ARGV[2 * i + 2], 'EX', ttl)
  else
    redis.call('SET', KEYS[i], ARGV[2 * i + 2])
  end
end
return refused
"""
_CAS = FENCE + CAS_BODY


def memory_of(info: Mapping[str, int]) -> StoreMemory:
    """Of one server, from its INFO. Without a maxmemory the limit is the machine's memory."""
    return StoreMemory(info["used_memory"], info["maxmemory"] or info["total_system_memory"], info["evicted_keys"])


class RedisStateStore(RedisConnection):
    """The StateStore port on Redis 6.2 or newer."""

    def __init__(self, settings: RedisSettings) -> None:
        super().__init__(settings)
        self._ttl = settings.user_ttl_s
        self._user = f"{settings.redis_prefix}u:".encode()
        self._bad = f"{settings.redis_prefix}damaged:".encode()
        self._progress = f"{settings.redis_prefix}p:"
        self._birth = f"{settings.redis_prefix}birth"
        self._cas = self._redis.register_script(_CAS)

    def _user_key(self, user_id: str) -> bytes:
        return self._user + user_id.encode()

    def read(self, user_ids: Sequence[str]) -> list[bytes | None]:
        """See StateStore."""
        values: list[bytes | None] = []
        for at in range(0, len(user_ids), _CHUNK):
            keys = [self._user + user.encode() for user in user_ids[at : at + _CHUNK]]
            values += self._call(lambda keys=keys: cast("list[bytes | None]", self._redis.mget(keys)))  # type: ignore[misc]
        return values

    def write(self, writes: Sequence[StateWrite], server_id: str = "", keep_ttl: bool = False) -> list[bool]:
        """See StateStore."""
        done: list[bool] = []
        ttl = _KEEP_TTL if keep_ttl else self._ttl
        for at in range(0, len(writes), _CHUNK):
            chunk = writes[at : at + _CHUNK]
            done += self._compare_and_set([self._user_key(w.key) for w in chunk], chunk, ttl, server_id)
        return done

    def _compare_and_set(self, keys: list[bytes], writes: Sequence[StateWrite], ttl: int, server_id: str) -> list[bool]:
        args: list[bytes | int | str] = [ttl, server_id]
        for write in writes:
            args += (write.expected, write.value)
        refused = self._call(lambda: cast("list[int]", self._cas(keys=[*keys, self._birth], args=args)))
        if refused == [0]:
            raise Unavailable(
                f"Redis at {self.address}: it was restarted or emptied, and may have lost its last writes"
            )
        done = [True] * len(writes)
        for index in refused:
            done[index - 1] = False
        return done

    def scan(self, cursor: int, count: int) -> tuple[int, list[str]]:
        """See StateStore."""
        pattern = SPECIAL.sub(rb"\\\1", self._user) + b"*"
        answer = self._call(lambda: self._redis.scan(cursor, match=pattern, count=count))
        following, keys = cast("tuple[int, list[bytes]]", answer)
        return following, [key[len(self._user) :].decode() for key in keys]

    def count_users(self) -> int:
        """See StateStore. All keys of the database are counted: Redis knows their number, not ours."""
        return self._call(self._redis.dbsize)

    def quarantine(self, user_id: str, value: bytes) -> None:
        """See StateStore."""
        self._call(lambda: self._redis.set(self._bad + user_id.encode(), value, ex=QUARANTINE_S))

    def _progress_key(self, topic: str, partition: int) -> bytes:
        return f"{self._progress}{topic}:{partition}".encode()

    def read_progress(self, topic: str, partitions: Sequence[int]) -> list[bytes | None]:
        """See StateStore."""
        if not partitions:
            return []
        keys = [self._progress_key(topic, partition) for partition in partitions]
        return self._call(lambda: cast("list[bytes | None]", self._redis.mget(keys)))

    def read_marks(self, topic: str, partitions: Sequence[int]) -> list[list[bytes | None]]:
        """See StateStore: one part."""
        return [[] for _ in partitions]

    def write_progress(
        self, topic: str, writes: Mapping[int, tuple[bytes, bytes]], server_id: str = ""
    ) -> dict[int, bool]:
        """See StateStore."""
        if not writes:
            return {}
        keys = [self._progress_key(topic, partition) for partition in writes]
        done = self._compare_and_set(keys, [StateWrite("", *pair) for pair in writes.values()], PROGRESS_TTL, server_id)
        return dict(zip(writes, done, strict=True))

    def server_id(self) -> str:
        """See StateStore: see FENCE. Another one after a start, a failover, or when the data was thrown away."""

        def ask() -> tuple[dict[str, str], dict[str, str], bytes | None]:
            pipe = self._redis.pipeline(transaction=False)
            pipe.info("server")
            pipe.info("replication")
            pipe.get(self._birth)
            return cast("tuple[dict[str, str], dict[str, str], bytes | None]", tuple(pipe.execute()))

        server, replication, birth = self._call(ask)
        while birth is None:
            self._call(lambda: self._redis.set(self._birth, uuid.uuid4().hex, nx=True))
            birth = self._call(lambda: cast("bytes | None", self._redis.get(self._birth)))
        return f"{server['run_id']}/{replication['master_replid']}/{birth.decode()}"

    def memory(self) -> StoreMemory:
        """See StateStore."""
        return memory_of(self._call(lambda: cast("dict[str, int]", self._redis.info())))
