"""The model registry as the services see it. Adapters: shared/adapters/registry.py, twin: memory_registry.py."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

FORMAT = 1
"""Of the manifest and of the files beside it."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is known of a published version without its weights."""

    version: str
    """"1", "2", ..."""
    fingerprint: int
    """First 8 bytes, big-endian, of the sha256 of the weights file: what a user's state carries."""
    config: Mapping[str, Any]
    metrics: Mapping[str, Any]
    lineage: Mapping[str, Any]
    """parent (version or None), data, trained_at (ms since the epoch), events, ..."""
    checksums: Mapping[str, str]
    """file name -> sha256, hex"""

    def to_json(self) -> dict[str, Any]:
        """As in manifest.json."""
        return {
            "format": FORMAT,
            "version": self.version,
            "config": dict(self.config),
            "metrics": dict(self.metrics),
            "lineage": dict(self.lineage),
            "checksums": dict(self.checksums),
            "fingerprint": f"{self.fingerprint:016x}",
        }


@dataclass(frozen=True, slots=True)
class Model:
    """A version, checked and in memory: the arguments of shared.model.inference.InferenceModel."""

    manifest: Manifest
    items: list[str]
    """Item ids in index order."""
    weights: dict[str, torch.Tensor]
    """float32; names and shapes as in shared.model.network.Weights"""


@dataclass(frozen=True, slots=True)
class Note:
    """One line of the registry's journal: something that happened to the models, and the numbers behind it."""

    id: str
    at: int
    """ms since the epoch; of two notes of one writer, the later one has the larger time."""
    kind: str
    """One of NOTE_KINDS."""
    details: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """As GET /v1/models shows it."""
        return {"id": self.id, "at": self.at, "kind": self.kind, "details": dict(self.details)}


NOTE_KINDS = ("alarm", "training", "gate", "swap", "rollback")


def rolled_back(notes: Iterable[Note]) -> set[str]:
    """Versions that came back from service because engagement was worse: never to be promoted again by themselves."""
    return {str(note.details.get("version")) for note in notes if note.kind == "rollback"}


class ModelRegistry(Protocol):
    """Immutable versions, one pointer to the version in service, and a journal. All methods raise Unavailable."""

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
        """Store a version under the next free number; it exists whole or not at all.

        make_current: then point to it, unless another publisher has already pointed to a newer one. Raises
        ModelDamaged, and stores nothing, where weights and items do not fit or a number is not finite.
        """

    def current(self) -> str | None:
        """The version in service; None: there is none yet. Raises ModelDamaged where the pointer cannot be read."""

    def set_current(self, version: str) -> None:
        """Point to a version that exists, older or newer. Raises NoSuchVersion."""

    def versions(self) -> list[Manifest]:
        """All whole versions, oldest first. One whose manifest cannot be read is left out, and logged."""

    def manifest(self, version: str) -> Manifest:
        """Raises NoSuchVersion, ModelDamaged."""

    def load(self, version: str) -> Model:
        """Weights and items, checked against the manifest. Raises NoSuchVersion, ModelDamaged (file and reason)."""

    def remove(self, version: str) -> bool:
        """Remove a version for good; whether it is gone.

        False, and nothing happens: it is in service, or the newest (a number is given out once), or the pointer cannot
        be read. A reader of it at that moment gets NoSuchVersion, or ModelDamaged where a part of it is gone already.
        After a crash in between it is removed, or listed still and can be removed again.
        """

    def note(self, kind: str, details: Mapping[str, Any]) -> Note:
        """Add to the journal: whole or not at all, for good. details: what JSON can hold."""

    def notes(self, limit: int | None = None) -> list[Note]:
        """The newest first, at most so many. One that cannot be read is left out, and logged."""
