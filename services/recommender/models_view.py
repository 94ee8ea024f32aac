"""What ``GET /v1/models`` tells: the registry's versions and the model in use here."""

from __future__ import annotations

from collections.abc import Callable

from services.recommender.serving import Serving
from shared.core.errors import ModelDamaged
from shared.core.registry_port import ModelRegistry


def describe_models(
    registry: ModelRegistry, serving: Serving | None, problem: Callable[[], str | None]
) -> dict[str, object]:
    """Blocking. Raises Unavailable.

    champion: the version that the registry points to; candidates: those published after it; versions: all, oldest
    first, with their config, metrics and lineage; loaded: what this process ranks with, which lags the registry by
    the loading time, or longer where ``problem`` says why.
    """
    trouble = problem()
    champion: str | None = None
    try:
        champion = registry.current()
    except ModelDamaged as error:
        trouble = trouble or str(error)
    manifests = registry.versions()
    newest = int(champion) if champion is not None else 0
    versions = []
    for manifest in manifests:
        number = int(manifest.version)
        role = "champion" if manifest.version == champion else "candidate" if number > newest else "retired"
        versions.append({**manifest.to_json(), "role": role})
    return {
        "champion": champion,
        "candidates": [v["version"] for v in versions if v["role"] == "candidate"],
        "versions": versions,
        "loaded": serving.describe() if serving is not None else None,
        "problem": trouble,
    }
