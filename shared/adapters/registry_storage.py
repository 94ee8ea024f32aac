"""Where a registry keeps its files: a directory, with atomic renames; an object store is in registry_objects.py."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from fsspec.core import url_to_fs

from shared.adapters.durable import storage_trouble, sync_folder, write_durably
from shared.adapters.registry_objects import ObjectStorage
from shared.core.errors import SettingsInvalid

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

    def remove(self, number: int, last: str, may_go: Callable[[bytes | None], bool]) -> bool:
        """Remove all files of a number, ``last`` after all others, if ``may_go`` of the present pointer says so."""

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
        with storage_trouble(f"model registry {self.root}"):
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
        with storage_trouble(f"model registry {self.root}"):
            try:
                return path.read_bytes()
            except FileNotFoundError:
                return None

    def add(self, files: Files, last: str, content_of: Callable[[int], bytes]) -> int:
        """See Storage."""
        with storage_trouble(f"model registry {self.root}"):
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
        with storage_trouble(f"model registry {self.root}"), self._locked():
            if not unless_newer(self.pointer()):
                return
            draft = self.root / f".current-{uuid.uuid4().hex}"
            try:
                write_durably(draft, content)
                os.replace(draft, self.root / "current")
            finally:
                draft.unlink(missing_ok=True)
            sync_folder(self.root)

    def remove(self, number: int, last: str, may_go: Callable[[bytes | None], bool]) -> bool:
        """See Storage. One rename, under the lock of the pointer: nobody can point to what is going."""
        grave = self._versions / f".removed-{uuid.uuid4().hex}"
        with storage_trouble(f"model registry {self.root}"):
            with self._locked():
                if not may_go(self.pointer()):
                    return False
                with suppress(FileNotFoundError):
                    os.rename(self._versions / str(number), grave)
                    sync_folder(self._versions)
            for folder in self._versions.glob(".removed-*"):  # those of removers that died, too
                shutil.rmtree(folder, ignore_errors=True)
        return True

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def notes(self) -> list[str]:
        """See Storage."""
        with storage_trouble(f"model registry {self.root}"):
            try:
                return [name for name in os.listdir(self.root / "notes") if not name.startswith(".")]
            except FileNotFoundError:
                return []

    def note(self, name: str) -> bytes | None:
        """See Storage."""
        return self._read(self.root / "notes" / name)

    def add_note(self, name: str, content: bytes) -> None:
        """See Storage."""
        with storage_trouble(f"model registry {self.root}"):
            folder = self.root / "notes"
            folder.mkdir(parents=True, exist_ok=True)
            draft = folder / f".{name}"
            try:
                write_durably(draft, content)
                os.replace(draft, folder / name)
            finally:
                draft.unlink(missing_ok=True)
            sync_folder(folder)


__all__ = ["DirectoryStorage", "ObjectStorage", "Storage", "open_storage"]
