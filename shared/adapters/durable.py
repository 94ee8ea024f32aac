"""Files that survive the power going, and what storages raise when they fail."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shared.core.errors import Unavailable


def write_durably(path: Path, content: bytes) -> None:
    """Write a file and force it to disk. Its name is durable after ``sync_folder``."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make names in the folder durable: without it a rename may be lost with the power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_CLIENTS = frozenset(
    ("adlfs", "aiobotocore", "aiohttp", "azure", "botocore", "gcsfs", "google", "ocifs", "ossfs", "oss2", "paramiko",
     "requests", "s3fs", "smbprotocol", "urllib3")
)  # fmt: skip
"""Packages that talk to storages for fsspec: many of their errors are no OSError."""


def is_storage_failure(error: Exception) -> bool:
    """Whether a storage that cannot be reached, or does not do what it is asked, raised it."""
    return isinstance(error, OSError) or any(kind.__module__.split(".")[0] in _CLIENTS for kind in type(error).__mro__)


@contextmanager
def storage_trouble(what: str) -> Iterator[None]:
    """Failures of a storage as Unavailable; ``what`` names it and where it is."""
    try:
        yield
    except Exception as error:
        if not is_storage_failure(error):
            raise
        raise Unavailable(f"{what}: {error}") from error
