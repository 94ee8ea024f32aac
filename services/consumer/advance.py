"""Events into states: which of them are new, and one packed run of the GRU over all of those."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from shared.core.state import UserState
from shared.model.inference import InferenceModel


class Placed(NamedTuple):
    """An accepted event and its place in the log."""

    user_id: str
    item_id: str
    ts: int
    event_id: str | None
    partition: int
    incarnation: int
    offset: int


class Advanced(NamedTuple):
    """What a batch came to: events applied, seen before (redelivered), repeated by event id, and states rebuilt."""

    changed: set[str]
    applied: int
    redelivered: int
    repeated: int
    rebuilt: int


def advance_states(
    states: Mapping[str, UserState], events: Iterable[Placed], model: InferenceModel | None, recent_limit: int
) -> Advanced:
    """Apply the events, in order, to the states of their users, in place.

    The outcome for a user depends only on the user's events, not on how they are split into batches or how often
    they are delivered. A state made by another model is rebuilt from its recent items first.
    """
    steps: dict[str, list[int]] = {}
    changed: set[str] = set()
    applied = redelivered = repeated = rebuilt = 0
    fingerprint = 0 if model is None else model.fingerprint
    index: Mapping[str, int] = {} if model is None else model.index
    for user_id, item_id, ts, event_id, partition, incarnation, offset in events:
        state = states[user_id]
        if state.has_applied(partition, incarnation, offset):
            redelivered += 1
            continue
        changed.add(user_id)
        if model is not None and user_id not in steps:
            steps[user_id] = []
            if state.fingerprint != fingerprint:
                steps[user_id] = model.known(state.recent_items())
                state.hidden, state.fingerprint = b"", fingerprint
                rebuilt += 1 if state.recent_count else 0
        elif model is None:
            state.hidden, state.fingerprint = b"", 0  # it would miss this event: to be rebuilt when a model comes
        state.mark_applied(partition, incarnation, offset + 1)
        if event_id is not None and not state.remember_event_id(event_id):
            repeated += 1
            continue
        applied += 1
        state.push_item(item_id, recent_limit)
        state.events += 1
        state.last_ts = ts
        if (item := index.get(item_id)) is not None:
            steps[user_id].append(item)
    if model is not None:
        _run(states, steps, model)
    return Advanced(changed, applied, redelivered, repeated, rebuilt)


def _run(states: Mapping[str, UserState], steps: Mapping[str, list[int]], model: InferenceModel) -> None:
    """Advance the hidden states of these users by their items, all in one packed run."""
    if not steps:
        return
    size = 2 * model.width
    zeros = bytes(size)
    joined = b"".join([states[user].hidden or zeros for user in steps])
    hidden = np.frombuffer(joined, dtype=np.float16).reshape(len(steps), model.width)
    raw = model.advance(hidden, list(steps.values())).tobytes()
    for row, user in enumerate(steps):
        states[user].hidden = raw[row * size : (row + 1) * size]
