"""A log cut in time: what training may learn, and the newest events, about which models are asked before they do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from shared.model.dataset import Sessions, build_sessions, catalogue_of, keep_events
from shared.model.dismissals import Ints, is_dismissal

CONTEXT = 8
"""Events before the newest ones that are learnt along with them, so that these start from a state and not from none."""


@dataclass(frozen=True, slots=True)
class Newest:
    """Sequences in which anything is new, whole: as in service, a state has seen all that came before."""

    older: Sessions
    """What came before the cut; items below ``known``"""
    whole: Sessions
    asked: Ints
    """(events of whole,) bool: the new events, but for the first of a sequence: nothing comes before it"""
    catalogue: list[str]
    """The known model's items, then those of the older part, then those of the newest, each most popular first"""
    known: int
    """Items of the known model and of the older part: the first so many"""

    @property
    def sequence(self) -> Ints:
        """(events of whole,) the sequence of each event."""
        return np.repeat(np.arange(len(self.whole)), self.whole.lengths)

    def to_learn(self) -> Sessions:
        """The newest events, with a few before them."""
        whole = self.whole
        first = np.full(len(whole), len(whole.items))
        np.minimum.at(first, self.sequence[self.asked], np.flatnonzero(self.asked))
        return keep_events(whole, np.arange(len(whole.items)) >= (first - CONTEXT)[self.sequence])

    def select(self, chosen: Ints) -> Newest:
        """Only the chosen sequences (positions or a mask)."""
        places = np.zeros(len(self.whole), bool)
        places[chosen] = True
        whole, asked = self.whole.select(places), self.asked[places[self.sequence]]
        return Newest(self.older, whole, asked, self.catalogue, self.known)

    def known_to(self, items: int) -> tuple[Sessions, Ints, Ints]:
        """(sequences without events of items from index ``items`` on, (their events,) bool: asked, (events of whole,)
        bool: which are left)."""
        left = self.whole.items < items
        return keep_events(self.whole, left), self.asked[left], left


def cut_newest(
    log: pl.DataFrame, rows: int, items: Sequence[str], sequence: str, dismissing: tuple[str, ...] = ()
) -> Newest:
    """The last ``rows`` rows of the log are new. items: of a model that is known, whose indexes stay.

    log: as build_sessions takes it. sequence, dismissing: see there.
    """
    older_log = log.head(log.height - rows)
    known = catalogue_of(older_log.filter(~is_dismissal(log, dismissing)), items)
    catalogue = catalogue_of(log.filter(~is_dismissal(log, dismissing)), known)
    older = build_sessions(older_log, known, sequence, dismissing)
    whole = build_sessions(log, catalogue, sequence, dismissing)
    # Sequences come in the order of their first event, so those of the older part come first, and begin alike.
    before = np.zeros(len(whole), np.int64)
    before[: len(older)] = older.lengths
    step = np.arange(len(whole.items)) - np.repeat(whole.starts[:-1], whole.lengths)
    asked = step >= np.repeat(np.maximum(before, 1), whole.lengths)
    newest = Newest(older, whole, asked, catalogue, len(known))
    return newest.select(np.unique(newest.sequence[asked]))
