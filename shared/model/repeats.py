"""Whether anyone ever chooses the current item again: a property of the log that decides what is offered.

In a shop that logs views of products next to nobody opens the page that is open (Diginetica: 1 of 1,500 actions); where
clicks are logged, many are on the same thing again (YooChoose: 1 of 7). A state resembles its own last item most, so it
stands high in every ranking, and where it never comes next its place is lost.
"""

from __future__ import annotations

import numpy as np

from shared.model.dataset import Sessions


def never_repeats(sessions: Sessions, below: float) -> bool:
    """True where the current item is chosen next in less than this share of all (input, target) pairs, beyond doubt:
    three more repeats than were seen (the rule of three) would still be fewer."""
    if not sessions.pairs:
        return False
    same = sessions.items[1:] == sessions.items[:-1]
    inside = np.ones(len(same), bool)
    inside[sessions.starts[1:-1] - 1] = False  # from one session's last event to the next one's first
    return int((same & inside).sum()) + 3 < below * sessions.pairs
