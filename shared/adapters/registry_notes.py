"""The registry's journal as files: notes/<ms>-<random>.json, each written once and never changed."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from shared.core.registry_port import Note

log = logging.getLogger(__name__)

_SUFFIX = ".json"
_DIGITS = 15
"""Of the time in ms: names sort as times do, for 30,000 years."""


class _File(msgspec.Struct):
    kind: str
    at: int
    details: dict[str, Any]


class _Clock:
    """Milliseconds since the epoch that always rise, so that a journal keeps the order of its writer."""

    def __init__(self) -> None:
        self._last = 0
        self._lock = threading.Lock()

    def now(self) -> int:
        with self._lock:
            self._last = max(self._last + 1, int(time.time() * 1000))
            return self._last


_clock = _Clock()


def new_note(kind: str, details: Mapping[str, Any]) -> Note:
    """A note of now."""
    at = _clock.now()
    return Note(f"{at:0{_DIGITS}d}-{uuid.uuid4().hex[:12]}", at, kind, dict(details))


def name_of(note: Note) -> str:
    """Its file's name."""
    return note.id + _SUFFIX


def encode_note(note: Note) -> bytes:
    """JSON, with a last line break."""
    return msgspec.json.encode(_File(note.kind, note.at, dict(note.details))) + b"\n"


class NoteCache:
    """Notes never change: what was read once, within the last KEEP, is not asked of the storage again."""

    KEEP = 1000

    def __init__(self, read: Callable[[str], bytes | None]) -> None:
        self._read = read
        self._held: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def read(self, name: str) -> bytes | None:
        """As the storage's."""
        content = self._held.get(name)
        if content is None:
            content = self._read(name)
            if content is not None:
                with self._lock:
                    self._held[name] = content
                    while len(self._held) > self.KEEP:
                        del self._held[min(self._held)]
        return content


def read_notes(names: Iterable[str], read: Callable[[str], bytes | None], limit: int | None, place: str) -> list[Note]:
    """The newest first; files of other names are none of ours."""
    found: list[Note] = []
    for name in sorted((name for name in names if name.endswith(_SUFFIX)), reverse=True):
        if limit is not None and len(found) >= limit:
            break
        content = read(name)
        try:
            file = msgspec.json.decode(content or b"", type=_File)
        except msgspec.DecodeError as error:
            log.warning("note %s/%s left out: %s", place, name, error)
            continue
        found.append(Note(name.removesuffix(_SUFFIX), file.at, file.kind, file.details))
    return found
