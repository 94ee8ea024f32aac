"""The model in use, with all that is made of it once, when it is loaded."""

from __future__ import annotations

import time
from collections.abc import Iterable

import msgspec

from services.recommender.new_items import NO_NEW_ITEMS, NewItems
from services.recommender.popular import Popular
from shared.model.fold_in import Bases
from shared.model.inference import InferenceModel
from shared.model.scorer import Scorer

_FILL = 3000
"""Items that can follow the trending ones: k, those to exclude and those seen, each at its largest."""


class Serving:
    """Made beside the one in use and put in its place whole, so that every ranking comes from one model."""

    def __init__(self, model: InferenceModel) -> None:
        self.model = model
        self.scorer = Scorer(model)
        """Replaced whole where what is popular now is a bias on the model's scores."""
        self.names = [msgspec.json.encode(item) for item in model.items]
        """Item ids as JSON, by index."""
        self.loaded_at = int(time.time() * 1000)
        self.new_items: NewItems = NO_NEW_ITEMS
        """Ranked beside the catalogue; replaced whole, about once a second while they change."""
        self.bases = Bases(model)
        self._filled: tuple[Popular, Popular] | None = None

    def known(self, items: Iterable[str], new_items: NewItems) -> list[int]:
        """Indexes of those items that can be ranked; new ones count from the end of the catalogue."""
        index, new, first = self.model.index, new_items.rows, len(self.model.items)
        found = []
        for item in items:
            if (at := index.get(item)) is not None:
                found.append(at)
            elif (row := new.get(item)) is not None:
                found.append(first + row)
        return found

    def filled(self, popular: Popular) -> Popular:
        """The trending items, and after them, with score 0, the catalogue's first, most popular in training first.

        So that a visitor is offered something while the stream has only begun.
        """
        held = self._filled
        if held is None or held[0] is not popular:
            have = set(popular.items)
            first = self.model.items[: _FILL + len(have)]
            more = [at for at, item in enumerate(first) if item not in have][:_FILL]
            full = Popular(
                popular.items + tuple(first[at] for at in more),
                popular.names + tuple(self.names[at] for at in more),
                popular.scores + (0.0,) * len(more),
            )
            held = self._filled = (popular, full)
        return held[1]

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
