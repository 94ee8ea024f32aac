"""Where the session log keeps files: a directory, with atomic renames; or an object store, whose puts are atomic."""

from __future__ import annotations

import os
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from fsspec.core import url_to_fs

from shared.adapters.durable import storage_trouble, sync_folder, write_durably
from shared.core.errors import SettingsInvalid

_STALE_S = 86_400.0
"""An unfinished file of this age, seconds, belongs to a writer that died."""
_UNFINISHED = ".unfinished-"


class LogStorage(Protocol):
    """Files by their path below the root. All methods raise Unavailable."""

    def list(self, below: str = "") -> dict[str, int]:
        """path -> size in bytes, of all files, or of those below a folder ("name/")."""

    def read(self, path: str) -> bytes | None:
        """None: there is no such file."""

    def local(self, path: str) -> str | None:
        """Where the file can be opened directly; None: only ``read`` can."""

    def write(self, path: str, content: bytes) -> None:
        """When it returns, the file is there, whole and durable; before, there is nothing of it to see."""

    def move(self, path: str, to: str) -> None:
        """Nothing happens if the file is gone."""

    def remove(self, path: str) -> None:
        """Nothing happens if the file is gone."""


def open_log_storage(uri: str) -> LogStorage:
    """A path or file:// URL is a directory; any other URL goes to fsspec. Raises SettingsInvalid."""
    if "://" not in uri or uri.startswith("file://"):
        return LogDirectory(Path(uri.removeprefix("file://")).expanduser())
    try:
        filesystem, root = url_to_fs(uri)
    except (ValueError, ImportError) as error:
        raise SettingsInvalid(f"SESSION_LOG_URI {uri}: {error}") from error
    return LogObjects(uri, filesystem, root)


class LogDirectory:
    """A file is written under a temporary name, forced to disk, and renamed."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def list(self, below: str = "") -> dict[str, int]:
        """See LogStorage. Unfinished files of writers that died are removed."""
        found: dict[str, int] = {}
        with storage_trouble(f"session log {self._root}"):
            for folder, _, names in os.walk(self._root / below, onerror=_unless_gone):
                for name in names:
                    path = Path(folder, name)
                    with suppress(FileNotFoundError):  # another process tidied up
                        stat = path.stat()
                        if not name.startswith(_UNFINISHED):
                            found[path.relative_to(self._root).as_posix()] = stat.st_size
                        elif time.time() - stat.st_mtime > _STALE_S:
                            path.unlink()
        return found

    def read(self, path: str) -> bytes | None:
        """See LogStorage."""
        with storage_trouble(f"session log {self._root}"):
            try:
                return (self._root / path).read_bytes()
            except FileNotFoundError:
                return None

    def local(self, path: str) -> str | None:
        """See LogStorage."""
        return str(self._root / path)

    def write(self, path: str, content: bytes) -> None:
        """See LogStorage."""
        final = self._root / path
        draft = final.parent / f"{_UNFINISHED}{uuid.uuid4().hex}"
        with storage_trouble(f"session log {self._root}"):
            new = not final.parent.exists()
            final.parent.mkdir(parents=True, exist_ok=True)
            try:
                write_durably(draft, content)
                os.replace(draft, final)
            finally:
                draft.unlink(missing_ok=True)
            sync_folder(final.parent)
            if new:
                sync_folder(self._root)

    def move(self, path: str, to: str) -> None:
        """See LogStorage."""
        with storage_trouble(f"session log {self._root}"):
            target = self._root / to
            target.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                os.replace(self._root / path, target)

    def remove(self, path: str) -> None:
        """See LogStorage. A day's folder goes with its last file."""
        with storage_trouble(f"session log {self._root}"):
            (self._root / path).unlink(missing_ok=True)
            with suppress(OSError):  # not empty
                (self._root / path).parent.rmdir()


class LogObjects:
    """One put makes an object visible, whole."""

    def __init__(self, uri: str, filesystem: Any, root: str) -> None:
        self._uri, self._fs, self._root = uri, filesystem, root.rstrip("/")

    def list(self, below: str = "") -> dict[str, int]:
        """See LogStorage."""
        with storage_trouble(f"session log {self._uri}"):
            self._fs.invalidate_cache()
            try:
                found = self._fs.find(f"{self._root}/{below}".rstrip("/"), detail=True)
            except FileNotFoundError:
                return {}
        start = len(self._root) + 1
        return {str(name)[start:]: int(info["size"]) for name, info in found.items()}

    def read(self, path: str) -> bytes | None:
        """See LogStorage."""
        with storage_trouble(f"session log {self._uri}"):
            try:
                return bytes(self._fs.cat_file(f"{self._root}/{path}"))
            except FileNotFoundError:
                return None

    def local(self, path: str) -> str | None:
        """See LogStorage."""
        return None

    def write(self, path: str, content: bytes) -> None:
        """See LogStorage."""
        with storage_trouble(f"session log {self._uri}"):
            self._fs.pipe_file(f"{self._root}/{path}", content)

    def move(self, path: str, to: str) -> None:
        """See LogStorage. Stores have no rename: a crash may leave both."""
        content = self.read(path)
        if content is not None:
            self.write(to, content)
            self.remove(path)

    def remove(self, path: str) -> None:
        """See LogStorage."""
        with storage_trouble(f"session log {self._uri}"), suppress(FileNotFoundError):
            self._fs.rm_file(f"{self._root}/{path}")


def _unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error
