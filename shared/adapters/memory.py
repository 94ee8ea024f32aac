"""In-memory twins of the ports: the same promises as the real servers, for tests and for trying things out."""

from __future__ import annotations

import functools
import threading
import uuid
import zlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from shared.core.errors import TooLarge, TopicMissing, TopicRecreated, Unavailable
from shared.core.ports import Headers, Polled, Record, StateWrite, StoreMemory
from shared.core.state import token_of

Method = TypeVar("Method", bound=Callable[..., Any])


def _atomic(method: Method) -> Method:
    """Run under the store's lock."""

    @functools.wraps(method)
    def locked(self: MemoryStateStore, *args: Any, **kwargs: Any) -> Any:
        with self._lock:
            return method(self, *args, **kwargs)

    return cast("Method", locked)


class MemoryStateStore:
    """The StateStore port. ``available = False`` makes every call raise Unavailable."""

    def __init__(self) -> None:
        self.users: dict[str, bytes] = {}
        self.damaged: dict[str, bytes] = {}
        self.progress: dict[tuple[str, int], bytes] = {}
        self.available = True
        self.limit_bytes = 1 << 30
        self._server = uuid.uuid4().hex
        self._lock = threading.RLock()  # a command is atomic, as in Redis

    def _check(self) -> None:
        if not self.available:
            raise Unavailable("the state store in memory was switched off")

    @_atomic
    def read(self, user_ids: Sequence[str]) -> list[bytes | None]:
        """See StateStore."""
        self._check()
        return [self.users.get(user) for user in user_ids]

    def _check_run(self, server_id: str) -> None:
        self._check()
        if server_id not in ("", self._server):
            raise Unavailable("the state store in memory was restarted")

    @_atomic
    def write(self, writes: Sequence[StateWrite], server_id: str = "", keep_ttl: bool = False) -> list[bool]:
        """See StateStore. Nothing expires here."""
        self._check_run(server_id)
        done = []
        for key, expected, value in writes:
            fits = token_of(self.users.get(key)) == expected
            if fits:
                self.users[key] = value
            done.append(fits)
        return done

    @_atomic
    def scan(self, cursor: int, count: int) -> tuple[int, list[str]]:
        """See StateStore."""
        self._check()
        users = sorted(self.users)
        end = cursor + count
        return (end if end < len(users) else 0), users[cursor:end]

    def count_users(self) -> int:
        """See StateStore."""
        self._check()
        return len(self.users)

    @_atomic
    def quarantine(self, user_id: str, value: bytes) -> None:
        """See StateStore."""
        self._check()
        self.damaged[user_id] = value

    @_atomic
    def read_progress(self, topic: str, partitions: Sequence[int]) -> list[bytes | None]:
        """See StateStore."""
        self._check()
        return [self.progress.get((topic, partition)) for partition in partitions]

    def read_marks(self, topic: str, partitions: Sequence[int]) -> list[list[bytes | None]]:
        """See StateStore: one part."""
        return [[] for _ in partitions]

    @_atomic
    def write_progress(
        self, topic: str, writes: Mapping[int, tuple[bytes, bytes]], server_id: str = ""
    ) -> dict[int, bool]:
        """See StateStore."""
        self._check_run(server_id)
        done = {}
        for partition, (expected, value) in writes.items():
            token = token_of(self.progress.get((topic, partition)))
            done[partition] = token == expected
            if done[partition]:
                self.progress[topic, partition] = value
        return done

    def server_id(self) -> str:
        """See StateStore."""
        self._check()
        return self._server

    @_atomic
    def memory(self) -> StoreMemory:
        """See StateStore. Values alone are counted, and nothing is thrown away."""
        self._check()
        used = sum(map(len, (*self.users.values(), *self.damaged.values(), *self.progress.values())))
        return StoreMemory(used, self.limit_bytes, 0)

    @_atomic
    def snapshot(self) -> tuple[dict[str, bytes], dict[tuple[str, int], bytes]]:
        """What a server would have on disk now."""
        return dict(self.users), dict(self.progress)

    @_atomic
    def restart(self, snapshot: tuple[dict[str, bytes], dict[tuple[str, int], bytes]] | None = None) -> None:
        """Come back as another run of the server, with the data of ``snapshot`` (default: all)."""
        if snapshot is not None:
            self.users, self.progress = dict(snapshot[0]), dict(snapshot[1])
        self._server = uuid.uuid4().hex

    def close(self) -> None:
        """Nothing to give back."""


@dataclass(frozen=True, slots=True)
class MemoryRecord:
    """A record as kafka-python gives it."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    leader_epoch: int = 0


@dataclass
class _Topic:
    partitions: list[list[MemoryRecord]]
    life: str = field(default_factory=lambda: uuid.uuid4().hex)
    epochs: defaultdict[int, int] = field(default_factory=lambda: defaultdict(int))
    """partition -> how often it had another leader."""


class MemoryBroker:
    """Topics in memory, with partitions that can be added and topics that can be deleted and made again."""

    def __init__(self, partitions: int = 4) -> None:
        self._partitions = partitions
        self.topics: dict[str, _Topic] = {}
        self.committed: dict[tuple[str, str, int], int] = {}
        self.most_bytes: dict[str, int] = {}
        """topic -> of a record; another topic takes 8 MiB."""
        self.available = True

    def check(self) -> None:
        """Raise Unavailable while switched off."""
        if not self.available:
            raise Unavailable("the broker in memory was switched off")

    def create(self, topic: str, partitions: int | None = None) -> None:
        """Make a topic, or make one anew that was deleted."""
        self.topics[topic] = _Topic([[] for _ in range(partitions or self._partitions)])

    def delete(self, topic: str) -> None:
        """Delete a topic, and what groups committed for it."""
        del self.topics[topic]
        self.committed = {key: offset for key, offset in self.committed.items() if key[1] != topic}

    def add_partitions(self, topic: str, count: int) -> None:
        """Grow a topic to ``count`` partitions."""
        have = self.topics[topic].partitions
        have += [[] for _ in range(count - len(have))]

    def lose_end(self, topic: str, partition: int, count: int) -> None:
        """What a broker does that lost its power, or a leader that was elected although it lacked the last records."""
        held = self.topics[topic]
        del held.partitions[partition][max(0, len(held.partitions[partition]) - count) :]
        held.epochs[partition] += 1

    def append(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Headers = (),
        partition: int | None = None,
        timestamp: int = 0,
    ) -> MemoryRecord:
        """Write one record; without a partition, the key chooses it."""
        self.check()
        if topic not in self.topics:
            self.create(topic)
        logs = self.topics[topic].partitions
        number = zlib.crc32(key or b"") % len(logs) if partition is None else partition
        epoch = self.topics[topic].epochs[number]
        record = MemoryRecord(topic, number, len(logs[number]), timestamp, key, value, tuple(headers), epoch)
        logs[number].append(record)
        return record

    def records(self, topic: str) -> list[MemoryRecord]:
        """All records of a topic, partition after partition."""
        return [r for log in self.topics[topic].partitions for r in log] if topic in self.topics else []


class MemoryInteractionSource:
    """The InteractionSource port. A test plays the group coordinator: ``assign`` and ``revoke``."""

    def __init__(self, broker: MemoryBroker, topic: str, group: str = "group") -> None:
        self.topic = topic
        self._broker = broker
        self._group = group
        self._positions: dict[int, int | None] = {}
        self._epochs: dict[int, int] = {}
        self._assigned: set[int] = set()
        self._revoked: set[int] = set()
        self._held = False
        self.on_revoke: Callable[[frozenset[int]], None] | None = None
        self.while_polling: Callable[[], None] | None = None
        """Called once, in the next poll, when it has its records: a rebalance may come then, too."""

    def assign(self, partitions: Sequence[int]) -> None:
        """Give this member partitions."""
        for partition in partitions:
            self._positions[partition] = None
        self._assigned |= set(partitions)

    def revoke(self, partitions: Sequence[int]) -> None:
        """Take partitions away."""
        if self.on_revoke is not None:
            self.on_revoke(frozenset(partitions))
        for partition in partitions:
            self._positions.pop(partition, None)
        self._assigned -= set(partitions)
        self._revoked |= set(partitions)

    def _logs(self) -> list[list[MemoryRecord]]:
        self._broker.check()
        if self.topic not in self._broker.topics:
            raise TopicMissing(f"the broker in memory has no topic {self.topic!r}")
        return self._broker.topics[self.topic].partitions

    def poll(self, timeout_s: float, max_records: int) -> Polled:
        """See InteractionSource. Does not wait."""
        logs = self._logs()
        records: dict[int, Sequence[Record]] = {}
        for partition, position in self._positions.items():
            if position is None or self._held or max_records <= 0 or partition >= len(logs):
                continue
            if self.lost_from(partition, position, self._epochs.get(partition, -1)) is not None:
                raise TopicRecreated(f"{self.topic}/{partition}: the broker lost the end of its log")
            if position > len(logs[partition]):
                raise TopicRecreated(f"offset {position} of {self.topic}/{partition} is outside the log")
            batch = logs[partition][position : position + max_records]
            if batch:
                records[partition] = batch
                self._epochs[partition] = batch[-1].leader_epoch
                self._positions[partition] = position + len(batch)
                max_records -= len(batch)
        if self.while_polling is not None:
            happens, self.while_polling = self.while_polling, None
            happens()
        polled = Polled(records, frozenset(self._assigned), frozenset(self._revoked))
        self._assigned, self._revoked = set(), set()
        return polled

    def hold(self) -> None:
        """See KafkaInteractionSource."""
        self._held = True

    def release(self) -> None:
        """See KafkaInteractionSource."""
        self._held = False

    def incarnations(self, partitions: Sequence[int]) -> dict[int, str]:
        """See InteractionSource."""
        count = len(self._logs())
        return dict.fromkeys([p for p in partitions if p < count], self._broker.topics[self.topic].life)

    def bounds(self, partitions: Sequence[int]) -> dict[int, tuple[int, int]]:
        """See InteractionSource."""
        logs = self._logs()
        return {p: (0, len(logs[p])) for p in partitions}

    def lost_from(self, partition: int, offset: int, epoch: int) -> int | None:
        """See InteractionSource."""
        logs = self._logs()
        if epoch < 0 or partition >= len(logs):
            return None
        log = logs[partition]
        end = next((record.offset for record in log if record.leader_epoch > epoch), len(log))
        return end if end < offset else None

    def seek(self, partition: int, offset: int, epoch: int = -1) -> None:
        """See InteractionSource."""
        if partition in self._positions:
            self._positions[partition] = offset
            self._epochs[partition] = epoch

    def commit(self, offsets: Mapping[int, int]) -> None:
        """See InteractionSource."""
        self._broker.check()
        for partition, offset in offsets.items():
            self._broker.committed[self._group, self.topic, partition] = offset

    def lag(self) -> dict[int, int]:
        """See InteractionSource."""
        logs = self._logs()
        return {p: len(logs[p]) - at for p, at in self._positions.items() if at is not None and p < len(logs)}

    def close(self) -> None:
        """See InteractionSource."""
        self._positions.clear()


_MOST_BYTES = 8 << 20
"""Key and value of a record."""


def _size(key: bytes | None, value: bytes | None) -> int:
    return len(key or b"") + len(value or b"")


class MemoryPublisher:
    """The Publisher port: records reach the broker at ``flush``. Too large may be one for us, at ``send``, or for its
    topic, at ``flush``."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self._refused: Unavailable | None = None
        self._queued: list[tuple[str, bytes | None, bytes | None, Headers, int | None]] = []

    def send(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Headers = (), partition: int | None = None
    ) -> None:
        """See Publisher."""
        self._broker.check()
        if key is None and value is None:
            raise Unavailable("a record needs a key or a value")
        if _size(key, value) > _MOST_BYTES:
            raise TooLarge(f"a record of {_size(key, value)} bytes")
        self._queued.append((topic, key, value, headers, partition))

    def flush(self, timeout_s: float) -> None:
        """See Publisher."""
        self._broker.check()
        queued, self._queued = self._queued, []
        for topic, key, value, headers, partition in queued:
            if self._refused is None and _size(key, value) > self._broker.most_bytes.get(topic, _MOST_BYTES):
                self._refused = TooLarge(f"{topic}: a record of {_size(key, value)} bytes")
            if self._refused is None:
                self._broker.append(topic, key, value, headers, partition)
        if self._refused is not None:
            raise self._refused  # and ever again, as an idempotent producer does

    def close(self) -> None:
        """See Publisher."""
        if self._broker.available:
            self.flush(0)
