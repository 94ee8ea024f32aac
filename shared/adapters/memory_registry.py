"""The model registry in memory: the twin of registry.py, for tests and for runs that need no disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from shared.adapters.model_files import ITEMS, WEIGHTS, decode_model, describe, encode_model
from shared.adapters.registry_notes import encode_note, name_of, new_note, read_notes
from shared.core.errors import NoSuchVersion, Unavailable
from shared.core.registry_port import Manifest, Model, Note


class MemoryModelRegistry:
    """ModelRegistry (shared/core/registry_port.py) in a dict."""

    def __init__(self) -> None:
        self.uri = "memory"
        self._versions: dict[str, tuple[Manifest, dict[str, bytes]]] = {}
        self._current: str | None = None
        self._notes: dict[str, bytes] = {}
        self.full = False
        """Switched on, nothing can be written, as on a disk without room."""

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
        self._check_room()
        version = str(max(map(int, self._versions), default=0) + 1)
        manifest = describe(version, files, config or {}, metrics or {}, lineage or {})
        self._versions[version] = (manifest, files)
        if make_current:
            self._current = version
        return manifest

    def current(self) -> str | None:
        """See ModelRegistry.current."""
        return self._current

    def set_current(self, version: str) -> None:
        """See ModelRegistry.set_current."""
        self.manifest(version)
        self._check_room()
        self._current = version

    def versions(self) -> list[Manifest]:
        """See ModelRegistry.versions."""
        return [manifest for manifest, _ in self._versions.values()]

    def manifest(self, version: str) -> Manifest:
        """See ModelRegistry.manifest."""
        return self._stored(version)[0]

    def load(self, version: str) -> Model:
        """See ModelRegistry.load."""
        manifest, files = self._stored(version)
        return decode_model(manifest, files[WEIGHTS], files[ITEMS], f"{self.uri}/versions/{version}")

    def remove(self, version: str) -> bool:
        """See ModelRegistry.remove."""
        if version not in self._versions or version in (self._current, max(self._versions, key=int)):
            return False
        del self._versions[version]
        return True

    def note(self, kind: str, details: Mapping[str, Any]) -> Note:
        """See ModelRegistry.note."""
        self._check_room()
        note = new_note(kind, details)
        self._notes[name_of(note)] = encode_note(note)
        return note

    def notes(self, limit: int | None = None) -> list[Note]:
        """See ModelRegistry.notes."""
        return read_notes(list(self._notes), self._notes.get, limit, f"{self.uri}/notes")

    def _check_room(self) -> None:
        if self.full:
            raise Unavailable(f"model registry {self.uri}: No space left on device")

    def _stored(self, version: str) -> tuple[Manifest, dict[str, bytes]]:
        if version not in self._versions:
            raise NoSuchVersion(f"{self.uri}: no model version {version!r}")
        return self._versions[version]
