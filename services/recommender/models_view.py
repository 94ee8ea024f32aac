"""What ``GET /v1/models`` tells: the registry's versions and the model in use here."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from services.recommender.serving import Serving
from shared.core.errors import ModelDamaged
from shared.core.registry_port import Manifest, ModelRegistry, rolled_back

EVENTS = 50
"""Of the journal, as shown."""
NOTES_READ = 500
"""Of the journal, looked through for what was rolled back: a few milliseconds."""


def describe_models(
    registry: ModelRegistry, serving: Serving | None, problem: Callable[[], str | None]
) -> dict[str, object]:
    """Blocking. Raises Unavailable.

    champion: the version that the registry points to; candidates: those published after it that nobody decided on;
    versions: all, oldest first, with their config, metrics, lineage, role, and the gate's decision with its numbers
    (None: there was no gate); events: the newest of the journal, newest first; loaded: what this process ranks with,
    which lags the registry by the loading time, or longer where ``problem`` says why.
    """
    trouble = problem()
    champion: str | None = None
    try:
        champion = registry.current()
    except ModelDamaged as error:
        trouble = trouble or str(error)
    notes = registry.notes(NOTES_READ)
    back = rolled_back(notes)
    versions = []
    for manifest in registry.versions():
        gate = manifest.metrics.get("gate")
        versions.append({**manifest.to_json(), "role": _role(manifest, champion, back), "gate": gate})
    return {
        "champion": champion,
        "candidates": [v["version"] for v in versions if v["role"] == "candidate"],
        "versions": versions,
        "events": [note.to_json() for note in notes[:EVENTS]],
        "loaded": serving.describe() if serving is not None else None,
        "problem": trouble,
    }


def _role(manifest: Manifest, champion: str | None, back: set[str]) -> str:
    """champion, candidate, rejected (by the gate), rolled back (from service, for its engagement), or retired."""
    if manifest.version == champion:
        return "champion"
    if manifest.version in back:
        return "rolled back"
    gate = manifest.metrics.get("gate")
    if isinstance(gate, Mapping) and gate.get("decision") != "promoted":
        return "rejected"
    return "candidate" if int(manifest.version) > int(champion or 0) else "retired"
