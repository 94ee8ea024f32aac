"""Files that survive the power going, and what storages raise when they fail."""

from __future__ import annotations

import os
import sys
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


def storage_failures() -> tuple[type[BaseException], ...]:
    """What a storage that cannot be reached raises. botocore's errors are no OSError, and only s3 brings them."""
    botocore = sys.modules.get("botocore.exceptions")
    return (OSError, botocore.BotoCoreError) if botocore else (OSError,)


@contextmanager
def storage_trouble(what: str) -> Iterator[None]:
    """Failures of a storage as Unavailable; ``what`` names it and where it is."""
    try:
        yield
    except storage_failures() as error:
        raise Unavailable(f"{what}: {error}") from error
