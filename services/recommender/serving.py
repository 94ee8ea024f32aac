"""The model in use, with all that is made of it once, when it is loaded."""

from __future__ import annotations

import time

import msgspec

from shared.model.inference import InferenceModel
from shared.model.scorer import Scorer


class Serving:
    """Made beside the one in use and put in its place whole, so that every ranking comes from one model."""

    def __init__(self, model: InferenceModel) -> None:
        self.model = model
        self.scorer = Scorer(model)
        self.names = [msgspec.json.encode(item) for item in model.items]
        """Item ids as JSON, by index."""
        self.loaded_at = int(time.time() * 1000)

    def describe(self) -> dict[str, object]:
        """For people and for /readyz."""
        return {
            "version": self.model.version,
            "fingerprint": f"{self.model.fingerprint:016x}",
            "items": len(self.model.items),
            "width": self.model.width,
            "coarse_precision": self.scorer.precision,
            "loaded_at": self.loaded_at,
        }
