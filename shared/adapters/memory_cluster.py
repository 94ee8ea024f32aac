"""A state store of several servers in memory, of which each may lose writes alone: the twin of redis_cluster.py."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

from shared.adapters.memory import MemoryStateStore
from shared.core.ports import StateWrite, StoreMemory
from shared.core.progress import mark_of

Progresses = dict[tuple[str, int], bytes]
Disk = list[tuple[dict[str, bytes], Progresses, Progresses]]


class MemoryClusterStateStore:
    """The StateStore port. Users are shared out; progress lies with the first server, and a mark of it with each."""

    def __init__(self, servers: int = 3, failing: int = 0) -> None:
        """failing: the one that ``restart`` restarts first."""
        self._servers = [MemoryStateStore() for _ in range(servers)]
        self._marks = [MemoryStateStore() for _ in range(servers)]  # only their progress is used
        self._failing = failing % servers

    def _of(self, user: str) -> int:
        return zlib.crc32(user.encode()) % len(self._servers)

    @property
    def users(self) -> dict[str, bytes]:
        """All values."""
        return {user: value for server in self._servers for user, value in server.users.items()}

    @property
    def progress(self) -> Progresses:
        """As the first server has it."""
        return self._servers[0].progress

    @property
    def available(self) -> bool:
        """False makes every call raise Unavailable."""
        return self._servers[0].available

    @available.setter
    def available(self, value: bool) -> None:
        for server in self._servers:
            server.available = value

    def read(self, user_ids: Sequence[str]) -> list[bytes | None]:
        """See StateStore."""
        return [self._servers[self._of(user)].read([user])[0] for user in user_ids]

    def write(self, writes: Sequence[StateWrite], server_id: str = "", keep_ttl: bool = False) -> list[bool]:
        """See StateStore. Where one server is another run, others may have taken their writes."""
        ids = self._ids(server_id)
        return [self._servers[n].write([w], ids[n])[0] for w in writes for n in [self._of(w.key)]]

    def _ids(self, server_id: str) -> list[str]:
        ids = server_id.split("|")
        return ids if len(ids) == len(self._servers) else [server_id] * len(self._servers)

    def scan(self, cursor: int, count: int) -> tuple[int, list[str]]:
        """See StateStore."""
        at, server = divmod(cursor, len(self._servers))
        following, users = self._servers[server].scan(at, count)
        if following:
            return following * len(self._servers) + server, users
        return (server + 1) % len(self._servers), users

    def count_users(self) -> int:
        """See StateStore."""
        return sum(server.count_users() for server in self._servers)

    def memory(self) -> StoreMemory:
        """See StateStore."""
        return StoreMemory.of_servers([server.memory() for server in self._servers])

    def quarantine(self, user_id: str, value: bytes) -> None:
        """See StateStore."""
        self._servers[self._of(user_id)].quarantine(user_id, value)

    def read_progress(self, topic: str, partitions: Sequence[int]) -> list[bytes | None]:
        """See StateStore."""
        return self._servers[0].read_progress(topic, partitions)

    def read_marks(self, topic: str, partitions: Sequence[int]) -> list[list[bytes | None]]:
        """See StateStore."""
        self.server_id()
        columns = [marks.read_progress(topic, partitions) for marks in self._marks]
        return [list(row) for row in zip(*columns, strict=True)]

    def write_progress(
        self, topic: str, writes: Mapping[int, tuple[bytes, bytes]], server_id: str = ""
    ) -> dict[int, bool]:
        """See StateStore."""
        ids = self._ids(server_id)
        for n, (server, marks) in enumerate(zip(self._servers, self._marks, strict=True)):
            server.write([], ids[n])  # raises for another run
            for partition, (_, value) in writes.items():
                marks.progress[topic, partition] = mark_of(value)
        return self._servers[0].write_progress(topic, writes, ids[0])

    def server_id(self) -> str:
        """See StateStore."""
        return "|".join(server.server_id() for server in self._servers)

    def snapshot(self) -> Disk:
        """What the servers would have on disk now: of each its users and progress, and its marks."""
        return [
            (*server.snapshot(), marks.snapshot()[1]) for server, marks in zip(self._servers, self._marks, strict=True)
        ]

    def restart(self, disk: Disk) -> None:
        """One server comes back as another run with its part of the data on disk, each time the next one."""
        n = self._failing
        self._failing = (n + 1) % len(self._servers)
        users, progress, marks = disk[n]
        self._servers[n].restart((users, progress))
        self._marks[n].restart(({}, marks))

    def close(self) -> None:
        """Nothing to give back."""
