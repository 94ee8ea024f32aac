"""What a training that was interrupted meant to do: its window and its checkpoint, in a folder of its own."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from services.retrainer.training_window import Bounds
from shared.adapters.checkpoints import Checkpoints
from shared.adapters.durable import write_durably
from shared.core.errors import Unavailable

KEEP_S = 6 * 3600.0
"""An older plan is not taken up again: what is new since then matters more than the epochs that it would save."""


class Plan(msgspec.Struct, frozen=True):
    """One training, before it began. ``run``: names data and settings; no event of a user is in here."""

    run: str
    champion: str | None
    settings: str
    since: int
    until: int
    changed_at: int
    at: float

    @property
    def bounds(self) -> Bounds:
        """Of its window."""
        return Bounds(self.since, self.until)


class Plans:
    """The plan in a folder; no more than one, and no more than one process at work on it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / "plan.json"

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Raises Unavailable where another training works in this folder, or it cannot be written to."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            lock = (self._folder / ".lock").open("wb")
        except OSError as error:
            raise Unavailable(f"TRAIN_DIR {self._folder}: {error}") from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise Unavailable(f"TRAIN_DIR {self._folder}: another training works there") from error
            yield

    def last(self) -> Plan | None:
        """None: there is none, it cannot be read, or it is too old."""
        try:
            plan = msgspec.json.decode(self._path.read_bytes(), type=Plan)
        except (FileNotFoundError, msgspec.DecodeError):
            return None
        except OSError as error:
            raise Unavailable(f"TRAIN_DIR {self._folder}: {error}") from error
        return plan if 0 <= time.time() - plan.at < KEEP_S else None

    def begin(self, plan: Plan) -> None:
        """In place of any other. Raises Unavailable."""
        self.clear()
        draft = self._path.with_suffix(".draft")
        try:
            write_durably(draft, msgspec.json.encode(plan))
            os.replace(draft, self._path)
        except OSError as error:
            raise Unavailable(f"TRAIN_DIR {self._folder}: {error}") from error

    def checkpoints(self, run: str) -> Checkpoints:
        """Of a plan."""
        return Checkpoints(self._folder / f"run-{run}")

    def clear(self) -> None:
        """The training is over: nothing stays but the lock."""
        self._path.unlink(missing_ok=True)
        for folder in self._folder.glob("run-*"):
            shutil.rmtree(folder, ignore_errors=True)
