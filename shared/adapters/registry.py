"""The model registry on a directory or any fsspec URL.

    MODEL_URI/versions/<n>/   one immutable version, see model_files.py
    MODEL_URI/current         {"version": "<n>"}
    MODEL_URI/notes/          the journal, see registry_notes.py

How a version appears whole or not at all, and a number is given out once, is the storage's part: registry_storage.py.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import torch

from shared.adapters.model_files import (
    ITEMS,
    MANIFEST,
    WEIGHTS,
    decode_manifest,
    decode_model,
    describe,
    encode_manifest,
    encode_model,
)
from shared.adapters.registry_notes import NoteCache, encode_note, name_of, new_note, read_notes
from shared.adapters.registry_storage import Storage, open_storage
from shared.core.errors import ModelDamaged, NoSuchVersion
from shared.core.registry_port import Manifest, Model, Note

log = logging.getLogger(__name__)


class FileModelRegistry:
    """ModelRegistry (shared/core/registry_port.py) over a storage."""

    def __init__(self, uri: str, storage: Storage | None = None) -> None:
        self.uri = uri
        self._storage = storage or open_storage(uri)
        self._notes = NoteCache(self._storage.note)

    def publish(
        self,
        weights: Mapping[str, torch.Tensor],
        items: Sequence[str],
        *,
        config: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
        lineage: Mapping[str, Any] | None = None,
        make_current: bool = True,
    ) -> Manifest:
        """See ModelRegistry.publish."""
        files = encode_model(weights, items)
        manifest = describe("0", files, config or {}, metrics or {}, lineage or {})

        def numbered(number: int) -> bytes:
            return encode_manifest(_with_version(manifest, str(number)))

        number = self._storage.add(files, MANIFEST, numbered)
        published = _with_version(manifest, str(number))
        if make_current:
            self._storage.point(_pointer(published.version), lambda held: _number_of(held) < number)
        return published

    def current(self) -> str | None:
        """See ModelRegistry.current."""
        content = self._storage.pointer()
        if content is None:
            return None
        number = _number_of(content)
        if number < 1:
            raise ModelDamaged(f"{self.uri}/current: names no version: {content[:80]!r}")
        return str(number)

    def set_current(self, version: str) -> None:
        """See ModelRegistry.set_current."""
        self.manifest(version)
        # Asked again under the storage's lock, where it has one: the version may have been removed just now.
        self._storage.point(_pointer(version), lambda held: bool(self.manifest(version)))

    def versions(self) -> list[Manifest]:
        """See ModelRegistry.versions."""
        found = []
        for number in self._storage.numbers():
            try:
                found.append(self.manifest(str(number)))
            except NoSuchVersion:
                continue  # removed since it was listed
            except ModelDamaged as error:
                log.warning("model version %d left out: %s", number, error)
        return found

    def manifest(self, version: str) -> Manifest:
        """See ModelRegistry.manifest."""
        content = self._read(version, MANIFEST)
        return decode_manifest(content, version, f"{self._folder(version)}/{MANIFEST}")

    def load(self, version: str) -> Model:
        """See ModelRegistry.load."""
        manifest = self.manifest(version)
        weights, items = self._read(version, WEIGHTS), self._read(version, ITEMS)
        return decode_model(manifest, weights, items, self._folder(version))

    def remove(self, version: str) -> bool:
        """See ModelRegistry.remove."""
        number = int(version) if _is_version(version) else 0

        def may_go(held: bytes | None) -> bool:
            unreadable = held is not None and not _number_of(held)
            return not unreadable and _number_of(held) != number and number < max(self._storage.numbers(), default=0)

        return number in self._storage.numbers() and self._storage.remove(number, MANIFEST, may_go)

    def note(self, kind: str, details: Mapping[str, Any]) -> Note:
        """See ModelRegistry.note."""
        note = new_note(kind, details)
        self._storage.add_note(name_of(note), encode_note(note))
        return note

    def notes(self, limit: int | None = None) -> list[Note]:
        """See ModelRegistry.notes."""
        return read_notes(self._storage.notes(), self._notes.read, limit, f"{self.uri}/notes")

    def _folder(self, version: str) -> str:
        return f"{self.uri}/versions/{version}"

    def _read(self, version: str, file: str) -> bytes:
        if not _is_version(version):
            raise NoSuchVersion(f"{self.uri}: no model version {version!r}")
        content = self._storage.read(int(version), file)
        if content is not None:
            return content
        if int(version) in self._storage.numbers():
            raise ModelDamaged(f"{self._folder(version)}/{file}: missing")
        raise NoSuchVersion(f"{self.uri}: no model version {version}")


def _is_version(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text) > 0 and str(int(text)) == text


def _with_version(manifest: Manifest, version: str) -> Manifest:
    return Manifest(
        version, manifest.fingerprint, manifest.config, manifest.metrics, manifest.lineage, manifest.checksums
    )


def _pointer(version: str) -> bytes:
    return msgspec.json.encode({"version": version}) + b"\n"


def _number_of(pointer: bytes | None) -> int:
    """The version that a pointer names; 0: none, or it cannot be read."""
    try:
        return int(msgspec.json.decode(pointer or b"", type=dict[str, str])["version"])
    except (msgspec.DecodeError, KeyError, ValueError):
        return 0
