"""What the services need from the outside, as protocols. Each has an in-memory twin in shared/adapters/memory.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol


class Record(Protocol):
    """A Kafka record as kafka-python gives it: the parts that we read."""

    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def leader_epoch(self) -> int:
        """How often the partition had had another leader when the record was written; -1: not known."""


class StateWrite(NamedTuple):
    """Replace the value of ``key`` if its token is still ``expected`` (b"": there is none yet)."""

    key: str
    expected: bytes
    value: bytes


class StoreMemory(NamedTuple):
    """Bytes that the state store uses and may use, and how many keys it threw away for want of room."""

    used: int
    limit: int
    evicted: int

    @classmethod
    def of_servers(cls, servers: Sequence[StoreMemory]) -> StoreMemory:
        """Bytes of the fullest server, which refuses writes first, however empty the others are; keys of them all."""
        fullest = max(servers, key=lambda server: server.used / server.limit)
        return cls(fullest.used, fullest.limit, sum(server.evicted for server in servers))


class StateStore(Protocol):
    """User states and the consumer's progress, by compare-and-set. All methods raise Unavailable."""

    def read(self, user_ids: Sequence[str]) -> list[bytes | None]:
        """The stored values, in the order asked for."""

    def write(self, writes: Sequence[StateWrite], server_id: str = "", keep_ttl: bool = False) -> list[bool]:
        """Which of the writes took place: each is atomic, and fails where the token is not the expected one.

        keep_ttl: the values live on as long as they would have; else as long as a state that was just touched.

        server_id: the run of the server that the writer counts on. Another run may have lost writes, and an event
        must not be applied to a state that went back in time: then nothing is written and Unavailable is raised.
        """

    def scan(self, cursor: int, count: int) -> tuple[int, list[str]]:
        """(the next cursor, about ``count`` users); begin with 0, a cursor of 0 is the end.

        Users who are there all the while come at least once, some possibly twice.
        """

    def count_users(self) -> int:
        """About how many users have a value."""

    def quarantine(self, user_id: str, value: bytes) -> None:
        """Keep a value that cannot be read, under a key of its own."""

    def read_progress(self, topic: str, partitions: Sequence[int]) -> list[bytes | None]:
        """The consumer's stored progress in each partition."""

    def read_marks(self, topic: str, partitions: Sequence[int]) -> list[list[bytes | None]]:
        """For each partition the marks (shared/core/progress.py) that the parts of the store hold.

        Parts are what may lose its last writes alone, such as the servers of a cluster: the states of all users are as
        far as the least of the marks. None: a part without one. A store of one part has no marks: its progress is one.
        """

    def write_progress(
        self, topic: str, writes: Mapping[int, tuple[bytes, bytes]], server_id: str = ""
    ) -> dict[int, bool]:
        """partition -> (expected token, value), as ``write`` does for users. Each part of the store gets the marks."""

    def server_id(self) -> str:
        """Names this run of the server: another one may have lost the last writes of the one before."""

    def memory(self) -> StoreMemory:
        """How full it is."""


@dataclass(slots=True)
class Polled:
    """What one poll brought. ``assigned`` and ``revoked`` tell of a rebalance since the last poll."""

    records: Mapping[int, Sequence[Record]] = field(default_factory=dict)
    assigned: frozenset[int] = frozenset()
    revoked: frozenset[int] = frozenset()


class InteractionSource(Protocol):
    """The interactions topic, read by one member of the consumer group."""

    topic: str
    on_revoke: Callable[[frozenset[int]], None] | None
    """Called inside ``poll`` before partitions are given to another."""

    def poll(self, timeout_s: float, max_records: int) -> Polled:
        """Records in offset order for each partition.

        Raises TopicMissing, TopicRecreated (held positions are void), Unavailable.
        """

    def incarnations(self, partitions: Sequence[int]) -> dict[int, str]:
        """Names the present life of the topic, for each partition that exists, asked of the broker now."""

    def bounds(self, partitions: Sequence[int]) -> dict[int, tuple[int, int]]:
        """partition -> (first offset that can be read, next offset to be written)."""

    def lost_from(self, partition: int, offset: int, epoch: int) -> int | None:
        """Where the broker lost the end of its log, and others may have written since: the offset from which on its
        records are not those that were read. None where nothing was lost, or it cannot be told.

        offset: after the last record read; epoch: its leader epoch. ``seek`` must follow.
        """

    def seek(self, partition: int, offset: int, epoch: int = -1) -> None:
        """Read on from here. epoch: Record.leader_epoch of the record before; -1: not known. Where it is known,
        ``poll`` raises TopicRecreated if the broker loses that record, also where another takes its offset."""

    def hold(self) -> None:
        """Bring no records until ``release``; polling goes on, so that the group keeps us."""

    def release(self) -> None:
        """End ``hold``."""

    def commit(self, offsets: Mapping[int, int]) -> None:
        """Commit for the group; an owner that lost its partitions is refused silently: the progress is elsewhere."""

    def lag(self) -> dict[int, int]:
        """partition -> records between our position and the end, as far as known without asking. Raises
        TopicRecreated, as ``poll``."""

    def close(self) -> None:
        """Leave the group."""


Headers = Sequence[tuple[str, bytes]]


class Publisher(Protocol):
    """Writes to topics. Nothing counts as written before ``flush`` returned."""

    def send(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Headers = (), partition: int | None = None
    ) -> None:
        """Queue a record; key and value are not both None.

        Raises Unavailable when the broker cannot take any more, TooLarge for a record that is too large: nothing of it
        was queued.
        """

    def flush(self, timeout_s: float) -> None:
        """Wait until the broker has acknowledged all that was sent. Raises Unavailable if one was not, TooLarge if for
        its size."""

    def close(self) -> None:
        """Flush what can be flushed and go."""
