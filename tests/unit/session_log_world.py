"""A session logger on twins, with a storage that fails and kills as told."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, field

import polars as pl
from prometheus_client import CollectorRegistry

from services.retrainer.session_log_metrics import SessionLogMetrics
from services.retrainer.session_logger import SessionLogger
from shared.adapters.forgets_reader import MemoryForgetsReader
from shared.adapters.memory import MemoryBroker, MemoryInteractionSource
from shared.adapters.session_log import FileSessionLog
from shared.core.errors import Unavailable
from shared.core.events import EventRules

NOW_MS = 1_700_000_000_000
LATER_MS = NOW_MS + 5 * 86_400_000
"""When events are logged."""
NEXT_DAY_MS = LATER_MS + 86_400_000


class Killed(Exception):
    """The process ends here."""


@dataclass
class FaultyStorage:
    """LogStorage in a dict. ``kill_in``: so many changes from now the process dies, before or after the change."""

    content: dict[str, bytes] = field(default_factory=dict)
    kill_in: int | None = None
    kill_before: bool = True
    full: bool = False

    def _change(self, change) -> None:
        if self.full:
            raise Unavailable("No space left on device")
        dies = False
        if self.kill_in is not None:
            self.kill_in -= 1
            dies = self.kill_in < 0
        if dies and self.kill_before:
            raise Killed
        change()
        if dies:
            raise Killed

    def list(self, below: str = "") -> dict[str, int]:
        return {path: len(content) for path, content in self.content.items() if path.startswith(below)}

    def read(self, path: str) -> bytes | None:
        return self.content.get(path)

    def local(self, path: str) -> str | None:
        return None

    def write(self, path: str, content: bytes) -> None:
        self._change(lambda: self.content.update({path: content}))

    def move(self, path: str, to: str) -> None:
        if path in self.content:
            self._change(lambda: self.content.update({to: self.content.pop(path)}))

    def remove(self, path: str) -> None:
        self._change(lambda: self.content.pop(path, None))

    def events(self) -> list[str]:
        """Paths of the files with events."""
        return sorted(path for path in self.content if path.startswith("dt="))


class World:
    """A broker, a storage, and what should be in the log."""

    def __init__(self, flush_s: float = 0.0, flush_events: int = 4, partitions: int = 2) -> None:
        """flush_events: of the members to come."""
        self.broker = MemoryBroker(partitions)
        self.broker.create("interactions")
        self.broker.create("forgets")
        self.storage = FaultyStorage()
        self.expected: dict[str, str] = {}
        """item -> user: each event has an item of its own."""
        self.sent = 0
        self.flush_s, self.flush_events = flush_s, flush_events

    def log(self, **limits: int) -> FileSessionLog:
        return FileSessionLog("test", storage=self.storage, **limits)

    def send(self, *users: str, event_type: str = "view") -> None:
        for user in users:
            item = f"i{self.sent}"
            event = {"user_id": user, "item_id": item, "event_type": event_type, "ts": NOW_MS + self.sent}
            self.broker.append("interactions", user.encode(), json.dumps(event).encode(), timestamp=NOW_MS)
            self.expected[item] = user
            self.sent += 1

    def forget(self, user: str) -> None:
        logs = self.broker.topics["interactions"].partitions
        wish = {
            "user_id": user,
            "requested_at": NOW_MS + self.sent,
            "end_offsets": {str(number): len(log) for number, log in enumerate(logs)},
        }
        self.broker.append("forgets", user.encode(), json.dumps(wish).encode())
        self.expected = {item: of for item, of in self.expected.items() if of != user}

    def member(self) -> Member:
        return Member(self)

    def logged(self) -> list[tuple[str, str]]:
        window = self.log().window()
        return [(item, user) for item, user in window.select("item_id", "user_id").iter_rows()]

    def in_files(self) -> set[tuple[str, str]]:
        """(item, user) of every row of every file, the ones that do not count too."""
        found: set[tuple[str, str]] = set()
        for path in self.storage.events():
            content = self.storage.content[path]
            if f"{zlib.crc32(content):08x}" in path:
                found |= set(pl.read_parquet(content).select("item_id", "user_id").iter_rows())
        return found


class Member:
    """A session logger in this process."""

    def __init__(self, world: World, source: MemoryInteractionSource | None = None) -> None:
        self.source = source or MemoryInteractionSource(world.broker, "interactions", "log")
        self.metrics = SessionLogMetrics(CollectorRegistry())
        self.log = world.log()
        self.logger = SessionLogger(
            self.source, self.log, MemoryForgetsReader(world.broker), EventRules(), self.metrics,
            world.flush_s, world.flush_events, upkeep_s=1e9, poll_s=0.0, clock=lambda: LATER_MS / 1000,
        )  # fmt: skip
        self.source.assign(range(len(world.broker.topics["interactions"].partitions)))

    def turns(self, count: int) -> None:
        for _ in range(count):
            self.logger.step()

    def all(self) -> None:
        """Everything there is, written."""
        self.logger.run(until_idle=True)
