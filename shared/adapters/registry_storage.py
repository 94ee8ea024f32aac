"""Where a registry keeps its files: a directory, with atomic renames; or an object store, by the order of its puts."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from fsspec.core import url_to_fs

from shared.adapters.durable import storage_failures, sync_folder, write_durably
from shared.core.errors import SettingsInvalid, Unavailable

STALE_S = 86_400.0
"""An unfinished version folder of this age, seconds, belongs to a publisher that died."""

Files = Mapping[str, bytes]


class Storage(Protocol):
    """All methods raise Unavailable."""

    def numbers(self) -> list[int]:
        """Version numbers that are taken, ascending, whole or not."""

    def read(self, number: int, file: str) -> bytes | None:
        """None: there is no such file."""

    def add(self, files: Files, last: str, content_of: Callable[[int], bytes]) -> int:
        """Store files under the next free number, ``content_of(number)`` as the file ``last``. Returns the number."""

    def pointer(self) -> bytes | None:
        """None: never set."""

    def point(self, content: bytes, unless_newer: Callable[[bytes | None], bool]) -> None:
        """Replace the pointer at once, if ``unless_newer`` of the present one says so."""

    def notes(self) -> list[str]:
        """Names of the notes, in any order."""

    def note(self, name: str) -> bytes | None:
        """None: there is no such note."""

    def add_note(self, name: str, content: bytes) -> None:
        """Store a note, whole or not at all. Nobody else uses the name."""


def open_storage(uri: str) -> Storage:
    """A path or file:// URL is a directory; any other URL goes to fsspec. Raises SettingsInvalid."""
    if "://" not in uri or uri.startswith("file://"):
        return DirectoryStorage(Path(uri.removeprefix("file://")).expanduser())
    try:
        filesystem, root = url_to_fs(uri)
    except (ValueError, ImportError) as error:
        raise SettingsInvalid(f"MODEL_URI {uri}: {error}") from error
    return ObjectStorage(uri, filesystem, root)


class DirectoryStorage:
    """A version is written under a temporary name, forced to disk, and renamed onto the next free number."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._versions = root / "versions"

    def numbers(self) -> list[int]:
        """See Storage."""
        with _unavailable(str(self.root)):
            try:
                names = os.listdir(self._versions)
            except FileNotFoundError:
                return []
        return sorted(int(name) for name in names if name.isdigit())

    def read(self, number: int, file: str) -> bytes | None:
        """See Storage."""
        return self._read(self._versions / str(number) / file)

    def pointer(self) -> bytes | None:
        """See Storage."""
        return self._read(self.root / "current")

    def _read(self, path: Path) -> bytes | None:
        with _unavailable(str(self.root)):
            try:
                return path.read_bytes()
            except FileNotFoundError:
                return None

    def add(self, files: Files, last: str, content_of: Callable[[int], bytes]) -> int:
        """See Storage."""
        with _unavailable(str(self.root)):
            self._versions.mkdir(parents=True, exist_ok=True)
            self._sweep()
            folder = self._versions / f".unfinished-{uuid.uuid4().hex}"
            folder.mkdir()
            try:
                for name, content in files.items():
                    write_durably(folder / name, content)
                return self._rename(folder, last, content_of)
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def _rename(self, folder: Path, last: str, content_of: Callable[[int], bytes]) -> int:
        """A rename onto a folder that holds files fails: so two publishers never get the same number."""
        number = max(self.numbers(), default=0) + 1
        while True:
            write_durably(folder / last, content_of(number))
            sync_folder(folder)
            try:
                os.rename(folder, self._versions / str(number))
            except OSError:
                if not (self._versions / str(number)).exists():
                    raise
                number += 1
                continue
            sync_folder(self._versions)
            return number

    def _sweep(self) -> None:
        for folder in self._versions.glob(".unfinished-*"):
            with suppress(FileNotFoundError):
                if time.time() - folder.stat().st_mtime > STALE_S:
                    shutil.rmtree(folder, ignore_errors=True)

    def point(self, content: bytes, unless_newer: Callable[[bytes | None], bool]) -> None:
        """See Storage. The lock keeps a slow publisher from pointing back to its older version."""
        with _unavailable(str(self.root)):
            self.root.mkdir(parents=True, exist_ok=True)
            with (self.root / ".lock").open("wb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not unless_newer(self.pointer()):
                    return
                draft = self.root / f".current-{uuid.uuid4().hex}"
                write_durably(draft, content)
                os.replace(draft, self.root / "current")
                sync_folder(self.root)

    def notes(self) -> list[str]:
        """See Storage."""
        with _unavailable(str(self.root)):
            try:
                return [name for name in os.listdir(self.root / "notes") if not name.startswith(".")]
            except FileNotFoundError:
                return []

    def note(self, name: str) -> bytes | None:
        """See Storage."""
        return self._read(self.root / "notes" / name)

    def add_note(self, name: str, content: bytes) -> None:
        """See Storage."""
        with _unavailable(str(self.root)):
            folder = self.root / "notes"
            folder.mkdir(parents=True, exist_ok=True)
            draft = folder / f".{name}"
            write_durably(draft, content)
            os.replace(draft, folder / name)
            sync_folder(folder)


class ObjectStorage:
    """A number is claimed by an object that must not exist yet; the manifest comes last and makes the version whole.

    Stores without a put-if-absent fall back to reading the claim again; publish from one place at a time there.
    """

    def __init__(self, uri: str, filesystem: Any, root: str) -> None:
        self._uri, self._fs, self._root = uri, filesystem, root.rstrip("/")

    def numbers(self) -> list[int]:
        """See Storage."""
        return sorted(int(name) for name in self._names("versions") if name.isdigit())

    def read(self, number: int, file: str) -> bytes | None:
        """See Storage."""
        return self._read(f"{self._root}/versions/{number}/{file}")

    def pointer(self) -> bytes | None:
        """See Storage."""
        return self._read(f"{self._root}/current")

    def _read(self, path: str) -> bytes | None:
        with _unavailable(self._uri):
            try:
                return bytes(self._fs.cat_file(path))
            except FileNotFoundError:
                return None

    def add(self, files: Files, last: str, content_of: Callable[[int], bytes]) -> int:
        """See Storage."""
        number = max(self.numbers(), default=0) + 1
        with _unavailable(self._uri):
            while not self._claim(f"{self._root}/versions/{number}/claim"):
                number += 1
            for name, content in files.items():
                self._fs.pipe_file(f"{self._root}/versions/{number}/{name}", content)
            self._fs.pipe_file(f"{self._root}/versions/{number}/{last}", content_of(number))
        return number

    def _claim(self, path: str) -> bool:
        token = json.dumps({"by": uuid.uuid4().hex, "at": time.time()}).encode()
        try:
            self._fs.pipe_file(path, token, mode="create")
        except FileExistsError:
            return False
        except (TypeError, NotImplementedError, ValueError):
            if self._fs.exists(path):
                return False
            self._fs.pipe_file(path, token)
        return bool(self._fs.cat_file(path) == token)

    def point(self, content: bytes, unless_newer: Callable[[bytes | None], bool]) -> None:
        """See Storage. One put is atomic; two at the same instant are not ordered."""
        with _unavailable(self._uri):
            if unless_newer(self.pointer()):
                self._fs.pipe_file(f"{self._root}/current", content)

    def notes(self) -> list[str]:
        """See Storage."""
        return self._names("notes")

    def note(self, name: str) -> bytes | None:
        """See Storage."""
        return self._read(f"{self._root}/notes/{name}")

    def add_note(self, name: str, content: bytes) -> None:
        """See Storage."""
        with _unavailable(self._uri):
            self._fs.pipe_file(f"{self._root}/notes/{name}", content)

    def _names(self, folder: str) -> list[str]:
        with _unavailable(self._uri):
            self._fs.invalidate_cache(f"{self._root}/{folder}")
            try:
                names = self._fs.ls(f"{self._root}/{folder}", detail=False)
            except FileNotFoundError:
                return []
        return [str(name).rstrip("/").rsplit("/", 1)[-1] for name in names]


@contextmanager
def _unavailable(where: str) -> Iterator[None]:
    try:
        yield
    except storage_failures() as error:
        raise Unavailable(f"model registry {where}: {error}") from error


__all__ = ["DirectoryStorage", "ObjectStorage", "Storage", "open_storage"]
