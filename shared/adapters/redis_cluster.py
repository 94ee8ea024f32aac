"""User states and progress in a Redis Cluster, and its connection: what redis_store.py does on one server.

Users are shared out to 64 buckets, each with a hash tag of its own, the tags spread evenly over the hash slots. All
keys of a bucket are in one slot: so they move and fail over together, a script may write many of them at once, and a
round trip to each server is one pipeline.

The servers of a cluster lose writes independently: when one dies, its replica may lack the last ones. So each bucket
holds a mark of the progress, written after the states there, and reading starts at the least of the marks (see
services/consumer/partitions.py). And every write names the run and the replication id of the server that the bucket
was on when the marks were read: a replica that took over has others, and takes nothing before they were read again.
"""

from __future__ import annotations

import binascii
import json
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import redis
from redis.cluster import ClusterNode, RedisCluster
from redis.exceptions import RedisClusterException

from shared.adapters.redis_client import client_options, parsed_url, told
from shared.adapters.redis_store import CAS_BODY, FENCE, PROGRESS_TTL, QUARANTINE_S, SPECIAL, memory_of
from shared.adapters.settings import RedisSettings
from shared.core.errors import SettingsInvalid, Unavailable
from shared.core.ports import StateWrite, StoreMemory
from shared.core.progress import mark_of

T = TypeVar("T")
Command = tuple[bytes | str | int, ...]

BUCKETS = 64
"""Never to be changed: it says where a user's state lies. More servers than that cannot be made use of."""
_SLOTS = 16384
_CHUNK = 4096
"""Users in one round trip: as many as a batch of the consumer has."""
_REFRESH_S = 0.5
"""The servers are asked who owns what so often, at most, while they fail."""

_CAS = FENCE + CAS_BODY
# KEYS: the marks; ARGV[3] and on: their values.
_MARK = FENCE + "for i = 1, #KEYS do redis.call('SET', KEYS[i], ARGV[i + 2]) end return {}"


def slot_of(key: bytes) -> int:
    """The hash slot of a key without a hash tag, or of the tag."""
    return binascii.crc_hqx(key, 0) % _SLOTS


def _tags() -> list[bytes]:
    """The tag of each bucket: the smallest number whose slot lies in the bucket's 256 slots."""
    tags: dict[int, bytes] = {}
    number = 0
    while len(tags) < BUCKETS:
        tag = str(number).encode()
        tags.setdefault(slot_of(tag) * BUCKETS // _SLOTS, tag)
        number += 1
    return [tags[bucket] for bucket in range(BUCKETS)]


TAGS = _tags()


def _primaries(cluster: RedisCluster) -> list[ClusterNode]:
    return list(cluster.get_primaries())  # type: ignore[no-untyped-call]


def bucket_of(text: str) -> int:
    """Where a user, or a partition's progress, lies."""
    return zlib.crc32(text.encode()) % BUCKETS


class ClusterConnection:
    """A client of the whole cluster whose errors name it. Connects when it is first needed."""

    def __init__(self, settings: RedisSettings) -> None:
        """Raises SettingsInvalid."""
        self._settings = settings
        self._options = client_options(settings)
        place = parsed_url(settings)
        self.address = f"{place.get('host', 'localhost')}:{place.get('port', 6379)} (cluster)"
        self._tls = settings.redis_url.get_secret_value().startswith("rediss://")
        if place.get("db", 0) or "path" in place:
            raise SettingsInvalid("REDIS_URL: a Redis Cluster (REDIS_CLUSTER) has only database 0, and no socket file")
        if "{" in settings.redis_prefix:
            raise SettingsInvalid("REDIS_PREFIX: no { with a Redis Cluster (REDIS_CLUSTER), where it has a meaning")
        self._lock = threading.Lock()
        self._client: RedisCluster | None = None
        self._refreshed = 0.0

    def _cluster(self) -> RedisCluster:
        with self._lock:
            if self._client is None:
                url = self._settings.redis_url.get_secret_value()
                self._client = RedisCluster.from_url(url, **self._options)
            return self._client

    def _call(self, work: Callable[[RedisCluster], T]) -> T:
        try:
            return work(self._cluster())
        except (redis.RedisError, RedisClusterException) as error:
            self._look_again()
            raise Unavailable(f"Redis at {self.address}: {told(error, self._tls)}") from error

    def _look_again(self) -> None:
        """Ask the servers who owns what now: one may have taken over from another."""
        with self._lock:
            if self._client is None or time.monotonic() - self._refreshed < _REFRESH_S:
                return
            self._refreshed = time.monotonic()
            try:
                self._client.nodes_manager.initialize()
            except (redis.RedisError, RedisClusterException):
                return  # the next error looks again

    def _node(self, cluster: RedisCluster, bucket: int) -> ClusterNode:
        return cluster.nodes_manager.get_node_from_slot(slot_of(TAGS[bucket]))

    def _ask(self, commands: Mapping[int, Sequence[Command]]) -> dict[int, list[Any]]:
        """The answers to each bucket's commands: one pipeline to each server. Raises Unavailable."""

        def work(cluster: RedisCluster) -> dict[int, list[Any]]:
            buckets: dict[str, tuple[ClusterNode, list[int]]] = {}
            for bucket in commands:
                node = self._node(cluster, bucket)
                buckets.setdefault(node.name, (node, []))[1].append(bucket)
            answers: dict[int, list[Any]] = {}
            for node, mine in buckets.values():
                pipe = cluster.get_redis_connection(node).pipeline(transaction=False)
                for bucket in mine:
                    for command in commands[bucket]:
                        pipe.execute_command(*command)  # type: ignore[no-untyped-call]
                found = iter(pipe.execute())
                for bucket in mine:
                    answers[bucket] = [next(found) for _ in commands[bucket]]
            return answers

        return self._call(work)

    def run(self, key: str, *command: str | bytes | int) -> object:
        """One command, to the server of the hash tag in ``key``. Raises Unavailable."""
        slot = slot_of(key.partition("{")[2].partition("}")[0].encode())

        def work(cluster: RedisCluster) -> object:
            node = cluster.nodes_manager.get_node_from_slot(slot)
            return cluster.get_redis_connection(node).execute_command(*command)  # type: ignore[no-untyped-call]

        return self._call(work)

    def _read(self, commands: Mapping[int, Sequence[Command]]) -> dict[int, list[Any]]:
        """``_ask``, once more where a server was not the right one any more: reading again does no harm."""
        try:
            return self._ask(commands)
        except Unavailable:
            return self._ask(commands)

    def close(self) -> None:
        """Give the connections back."""
        with self._lock:
            if self._client is not None:
                self._client.close()
                self._client = None


class RedisClusterStateStore(ClusterConnection):
    """The StateStore port on a Redis Cluster, 6.2 or newer."""

    def __init__(self, settings: RedisSettings) -> None:
        super().__init__(settings)
        self._ttl = settings.user_ttl_s
        self._prefix = settings.redis_prefix.encode()

    def _key(self, kind: bytes, bucket: int, rest: str) -> bytes:
        return b"%s%s:{%s}:%s" % (self._prefix, kind, TAGS[bucket], rest.encode())

    def read(self, user_ids: Sequence[str]) -> list[bytes | None]:
        """See StateStore."""
        values: list[bytes | None] = [None] * len(user_ids)
        for begin in range(0, len(user_ids), _CHUNK):
            places: dict[int, list[int]] = {}
            for at, user in enumerate(user_ids[begin : begin + _CHUNK], begin):
                places.setdefault(bucket_of(user), []).append(at)
            commands: dict[int, list[Command]] = {
                bucket: [("MGET", *(self._key(b"u", bucket, user_ids[at]) for at in mine))]
                for bucket, mine in places.items()
            }
            for bucket, (found,) in self._read(commands).items():
                for at, value in zip(places[bucket], found, strict=True):
                    values[at] = value
        return values

    def write(self, writes: Sequence[StateWrite], server_id: str = "", keep_ttl: bool = False) -> list[bool]:
        """See StateStore. Where one server is another run, the others may have taken their writes."""
        done = [True] * len(writes)
        for begin in range(0, len(writes), _CHUNK):
            keyed: dict[int, list[tuple[int, bytes, StateWrite]]] = {}
            for at, write in enumerate(writes[begin : begin + _CHUNK], begin):
                bucket = bucket_of(write.key)
                keyed.setdefault(bucket, []).append((at, self._key(b"u", bucket, write.key), write))
            for at in self._compare_and_set(keyed, -1 if keep_ttl else self._ttl, server_id):
                done[at] = False
        return done

    def _compare_and_set(
        self, writes: Mapping[int, Sequence[tuple[int, bytes, StateWrite]]], ttl: int, server_id: str
    ) -> list[int]:
        """Which were refused."""
        runs = _runs(server_id)
        commands: dict[int, list[Command]] = {}
        for bucket, mine in writes.items():
            args = [part for _, _, write in mine for part in (write.expected, write.value)]
            commands[bucket] = [("EVAL", _CAS, len(mine), *(key for _, key, _ in mine), ttl, runs[bucket], *args)]
        answers = self._ask(commands)
        self._check(answers)
        return [writes[bucket][index - 1][0] for bucket, (refused,) in answers.items() for index in refused]

    def _check(self, answers: Mapping[int, list[Any]]) -> None:
        if any(answer == [0] for answer, *_ in answers.values()):
            raise Unavailable(
                f"Redis at {self.address}: a server was restarted or replaced, and may have lost its last writes"
            )

    def scan(self, cursor: int, count: int) -> tuple[int, list[str]]:
        """See StateStore: one server after the other. While one takes over from another, users may be left out."""

        def work(cluster: RedisCluster) -> tuple[int, list[bytes]]:
            nodes = sorted(_primaries(cluster), key=lambda node: str(node.name))
            at, number = divmod(cursor, len(nodes))
            pattern = SPECIAL.sub(rb"\\\1", self._prefix) + b"u:{*}:*"
            connection = cluster.get_redis_connection(nodes[number])
            following, keys = cast("tuple[int, list[bytes]]", connection.scan(at, match=pattern, count=count))
            if following:
                return following * len(nodes) + number, keys
            return (number + 1) % len(nodes), keys

        following, keys = self._call(work)
        return following, [key[len(self._prefix) :].partition(b"}:")[2].decode() for key in keys]

    def count_users(self) -> int:
        """See StateStore. All keys of the cluster are counted."""

        def work(cluster: RedisCluster) -> int:
            total = 0
            for node in _primaries(cluster):
                total += cluster.get_redis_connection(node).dbsize()
            return total

        return self._call(work)

    def memory(self) -> StoreMemory:
        """See StateStore: of the servers that take writes."""

        def work(cluster: RedisCluster) -> StoreMemory:
            return StoreMemory.of_servers(
                [memory_of(cluster.get_redis_connection(node).info()) for node in _primaries(cluster)]
            )

        return self._call(work)

    def quarantine(self, user_id: str, value: bytes) -> None:
        """See StateStore."""
        bucket = bucket_of(user_id)
        self._ask({bucket: [("SET", self._key(b"damaged", bucket, user_id), value, "EX", QUARANTINE_S)]})

    def _progress_place(self, topic: str, partition: int) -> tuple[int, bytes]:
        rest = f"{topic}:{partition}"
        bucket = bucket_of(rest)
        return bucket, self._key(b"p", bucket, rest)

    def read_progress(self, topic: str, partitions: Sequence[int]) -> list[bytes | None]:
        """See StateStore."""
        places = [self._progress_place(topic, partition) for partition in partitions]
        commands: dict[int, list[Command]] = {}
        for bucket, key in places:
            commands.setdefault(bucket, []).append(("GET", key))
        answers = {bucket: iter(found) for bucket, found in self._read(commands).items()}
        return [next(answers[bucket]) for bucket, _ in places]

    def read_marks(self, topic: str, partitions: Sequence[int]) -> list[list[bytes | None]]:
        """See StateStore: a bucket is a part."""
        if not partitions:
            return []
        commands: dict[int, list[Command]] = {
            bucket: [("MGET", *(self._key(b"m", bucket, f"{topic}:{partition}") for partition in partitions))]
            for bucket in range(BUCKETS)
        }
        columns = [answer[0] for answer in self._read(commands).values()]
        return [list(row) for row in zip(*columns, strict=True)]

    def write_progress(
        self, topic: str, writes: Mapping[int, tuple[bytes, bytes]], server_id: str = ""
    ) -> dict[int, bool]:
        """See StateStore. Marks first: so a progress that is ahead of one tells of a part that lost writes."""
        if not writes:
            return {}
        runs = _runs(server_id)
        marks = [mark_of(value) for _, value in writes.values()]
        commands: dict[int, list[Command]] = {}
        for bucket in range(BUCKETS):
            keys = [self._key(b"m", bucket, f"{topic}:{partition}") for partition in writes]
            commands[bucket] = [("EVAL", _MARK, len(keys), *keys, 0, runs[bucket], *marks)]
        self._check(self._ask(commands))
        keyed: dict[int, list[tuple[int, bytes, StateWrite]]] = {}
        for partition, pair in writes.items():
            bucket, key = self._progress_place(topic, partition)
            keyed.setdefault(bucket, []).append((partition, key, StateWrite("", *pair)))
        refused = self._compare_and_set(keyed, PROGRESS_TTL, server_id)
        return {partition: partition not in refused for partition in writes}

    def server_id(self) -> str:
        """See StateStore: run and replication id of the server that each bucket is on."""

        def work(cluster: RedisCluster) -> dict[str, list[int]]:
            runs: dict[str, str] = {}
            held: dict[str, list[int]] = {}
            for bucket in range(BUCKETS):
                node = self._node(cluster, bucket)
                if node.name not in runs:
                    connection = cluster.get_redis_connection(node)
                    server, replication = connection.info("server"), connection.info("replication")
                    if replication["role"] != "master":
                        raise redis.ConnectionError(f"{node.name} is a replica now")
                    runs[node.name] = f"{server['run_id']}/{replication['master_replid']}"
                held.setdefault(runs[node.name], []).append(bucket)
            return held

        return json.dumps(self._call(work), sort_keys=True)


def _runs(server_id: str) -> list[str]:
    """What ``server_id`` said of each bucket; a text that it never said fits no server."""
    if not server_id.startswith("{"):
        return [f"{server_id}/" if server_id else ""] * BUCKETS
    runs = [server_id] * BUCKETS
    for run, buckets in json.loads(server_id).items():
        for bucket in buckets:
            runs[bucket] = run
    return runs
