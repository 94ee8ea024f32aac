"""The session log's files as frames: listed, read, checked, written, set aside."""

from __future__ import annotations

import hashlib
import io
import logging
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import msgspec
import polars as pl

from shared.adapters.session_log_files import LogStorage
from shared.adapters.session_log_frames import UNREADABLE, encode_frame, named
from shared.core.errors import Unavailable
from shared.core.log_files import LogFile, damaged_file, log_file
from shared.core.session_log_port import Forgotten, decode_forgotten, encode_forgotten

log = logging.getLogger(__name__)

T = TypeVar("T")

ATTEMPTS = 20
"""Each failed one means that files were merged or removed meanwhile, or that one was found damaged."""


class FileChanged(Exception):
    """A listed file was replaced, removed or set aside: list again."""


class Listing(NamedTuple):
    """What is there."""

    files: list[LogFile]
    damaged: list[LogFile]
    forgets: list[str]
    """Paths of the wishes."""


class LogStore:
    """Reads and writes whole files. Not locked: what it caches never changes under its name."""

    def __init__(self, uri: str, storage: LogStorage) -> None:
        self.uri = uri
        self._storage = storage
        self._wishes: dict[str, Forgotten] = {}

    def list(self) -> Listing:
        """All there is at one time. Raises Unavailable.

        A folder that is read while a merge puts one file in the place of others may show neither: so it is read until
        it looks the same twice.
        """
        stored = self._storage.list()
        for _ in range(ATTEMPTS):
            before, stored = stored, self._storage.list()
            if stored.keys() == before.keys():
                break
        files = [file for path, size in stored.items() if (file := log_file(path, size)) is not None]
        damaged = [file for path, size in stored.items() if (file := damaged_file(path, size)) is not None]
        return Listing(files, damaged, sorted(path for path in stored if path.startswith("forgets/")))

    def attempt(self, work: Callable[[Listing], T]) -> T:
        """``work`` on what is there, again where that changed meanwhile. Raises Unavailable."""
        for _ in range(ATTEMPTS):
            try:
                return work(self.list())
            except FileChanged:
                continue
        raise Unavailable(f"session log {self.uri}: its files kept changing while they were read")

    def read(self, file: LogFile, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """A file's rows; the content is checked. A damaged file is set aside. Raises FileChanged, Unavailable."""
        content = self._storage.read(file.path)
        if content is None:
            raise FileChanged
        if zlib.crc32(content) != file.checksum:
            self._set_aside(file, "its checksum does not match its name")
        try:
            return pl.read_parquet(io.BytesIO(content), columns=list(columns) if columns else None)
        except UNREADABLE as error:
            self._set_aside(file, f"it cannot be read: {str(error).strip().splitlines()[0]}")
        raise FileChanged

    def skim(self, file: LogFile, columns: Sequence[str]) -> pl.DataFrame:
        """``read`` of some columns: only their bytes where it is a local file, and then they are not checked."""
        local = self._storage.local(file.path)
        if local is None:
            return self.read(file, columns)
        try:
            return pl.read_parquet(local, columns=list(columns), hive_partitioning=False, glob=False)
        except UNREADABLE:
            return self.read(file, columns)

    def _set_aside(self, file: LogFile, why: str) -> None:
        log.error(
            "session log: a file is damaged and was set aside as %s: %s; its offsets are read again if Kafka has them",
            file.set_aside,
            why,
            extra={"partition": file.partition, "first": file.first, "next": file.next},
        )
        self._storage.move(file.path, file.set_aside)
        raise FileChanged

    def write(self, day: str, life: tuple[int, int], first: int, after: int, frame: pl.DataFrame) -> LogFile:
        """Make the rows visible, as what there is of these offsets. Raises Unavailable, and then they are not."""
        content = encode_frame(frame)
        file = named(day, life, first, after, content)
        self._storage.write(file.path, content)
        return file

    def remove(self, file: LogFile) -> None:
        """Raises Unavailable."""
        self._storage.remove(file.path)

    def remove_damaged(self, file: LogFile) -> None:
        """Raises Unavailable."""
        self._storage.remove(file.set_aside)

    def add_wish(self, wish: Forgotten) -> None:
        """Keep it. A wish that was kept before stays as it was: the topic's life may be another now."""
        digest = hashlib.sha256(wish.user_id.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        path = f"forgets/{wish.requested_at}-{digest}.json"
        if self._storage.read(path) is None:
            self._storage.write(path, encode_forgotten(wish))

    def remove_wish(self, path: str) -> None:
        """Raises Unavailable."""
        self._storage.remove(path)

    def wish_paths(self) -> Sequence[str]:
        """Raises Unavailable."""
        return sorted(self._storage.list("forgets/"))

    def wishes(self, paths: Sequence[str]) -> Mapping[str, Forgotten]:
        """path -> wish. Raises Unavailable."""
        known = self._wishes
        found: dict[str, Forgotten] = {}
        for path in paths:
            if path in known:
                found[path] = known[path]
            elif (content := self._storage.read(path)) is not None:
                try:
                    found[path] = decode_forgotten(content)
                except msgspec.DecodeError as error:
                    log.error("session log: the wish to be forgotten in %s/%s is damaged: %s", self.uri, path, error)
        self._wishes = found
        return found
