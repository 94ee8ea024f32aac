"""Rankings kept in memory, so that one whose state and model did not change is not computed twice."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Entry(NamedTuple):
    """The best items for one state: nothing left out, best first. About 1 kB at 64 items."""

    token: bytes
    made_by: tuple[int, int]
    """The model's fingerprint, and the number of the bias that was added to its own (Scorer.number)."""
    as_of: int
    indexes: np.ndarray
    """(n,) int32"""
    scores: np.ndarray
    """(n,) float64"""
    dismissed: Sequence[tuple[str, int]] = ()
    """Items that the user dismissed, and up to when (seconds since the epoch) they are not offered."""


class RankingCache:
    """The ``size`` users asked for last. An entry holds for one token of the state and one model and bias only."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._entries: OrderedDict[str, Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, user_id: str, token: bytes, made_by: tuple[int, int]) -> Entry | None:
        """The entry made from this very state by this very model and bias."""
        entry = self._entries.get(user_id)
        if entry is None or entry.token != token or entry.made_by != made_by:
            return None
        self._entries.move_to_end(user_id)
        return entry

    def put(self, user_id: str, entry: Entry) -> None:
        """Keep it; the user asked for longest ago goes when there is no room."""
        if not self._size:
            return
        self._entries[user_id] = entry
        self._entries.move_to_end(user_id)
        if len(self._entries) > self._size:
            self._entries.popitem(last=False)

    def drop(self, user_id: str) -> None:
        """Forget the user."""
        self._entries.pop(user_id, None)
