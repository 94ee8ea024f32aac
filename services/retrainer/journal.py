"""Notes in the registry's journal, each once: what is stored after a note may be lost, and is then done again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shared.core.registry_port import ModelRegistry

_READ = 100
"""Of the newest notes, looked through for one written before."""


def note_alarm(registry: ModelRegistry, details: Mapping[str, Any]) -> None:
    """details: the alarm's own fields."""
    if not any(note.kind == "alarm" and note.details == details for note in registry.notes(_READ)):
        registry.note("alarm", details)


def note_gate(registry: ModelRegistry, version: str | None, gate: Mapping[str, Any]) -> None:
    """The gate's decision on a version and its numbers; version None: a challenger that was not published."""
    if version is not None:
        for note in registry.notes(_READ):
            if note.kind == "gate" and note.details.get("version") == version:
                return
    registry.note("gate", {"version": version, **gate})


def note_service(registry: ModelRegistry, kind: str, details: Mapping[str, Any]) -> bool:
    """A swap or a rollback to note; False where it is the last word on the version in service already."""
    for note in registry.notes(_READ):
        if note.kind in ("swap", "rollback"):
            if (note.kind, note.details.get("version")) == (kind, details["version"]):
                return False
            break
    registry.note(kind, details)
    return True
