"""A registry in an object store (any fsspec file system): what is whole is told by the order of the puts."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from shared.adapters.durable import storage_trouble


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
        with storage_trouble(f"model registry {self._uri}"):
            try:
                return bytes(self._fs.cat_file(path))
            except FileNotFoundError:
                return None

    def add(self, files: Mapping[str, bytes], last: str, content_of: Callable[[int], bytes]) -> int:
        """See Storage."""
        number = max(self.numbers(), default=0) + 1
        with storage_trouble(f"model registry {self._uri}"):
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
        with storage_trouble(f"model registry {self._uri}"):
            if unless_newer(self.pointer()):
                self._fs.pipe_file(f"{self._root}/current", content)

    def remove(self, number: int, last: str, may_go: Callable[[bytes | None], bool]) -> bool:
        """See Storage. Not atomic: until ``last`` is gone the number is listed, so an interrupted one is done again."""
        with storage_trouble(f"model registry {self._uri}"):
            if not may_go(self.pointer()):
                return False
            folder = f"{self._root}/versions/{number}"
            for name in sorted(self._names(f"versions/{number}"), key=lambda name: name == last):
                with suppress(FileNotFoundError):
                    self._fs.rm_file(f"{folder}/{name}")
            self._fs.invalidate_cache(folder)
        return True

    def notes(self) -> list[str]:
        """See Storage."""
        return self._names("notes")

    def note(self, name: str) -> bytes | None:
        """See Storage."""
        return self._read(f"{self._root}/notes/{name}")

    def add_note(self, name: str, content: bytes) -> None:
        """See Storage."""
        with storage_trouble(f"model registry {self._uri}"):
            self._fs.pipe_file(f"{self._root}/notes/{name}", content)

    def _names(self, folder: str) -> list[str]:
        with storage_trouble(f"model registry {self._uri}"):
            self._fs.invalidate_cache(f"{self._root}/{folder}")
            try:
                names = self._fs.ls(f"{self._root}/{folder}", detail=False)
            except FileNotFoundError:
                return []
        return [str(name).rstrip("/").rsplit("/", 1)[-1] for name in names]
