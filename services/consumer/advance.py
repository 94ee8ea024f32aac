"""Events into states: which of them are new, and one packed run of the GRU over all of those."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from shared.core.engagement import MASK, PHASE, STRIDE
from shared.core.state import UserState
from shared.model.inference import Hidden, InferenceModel


class Placed(NamedTuple):
    """An accepted event and its place in the log.

    dismissed_until: seconds since the epoch up to which a dismissed item is not offered; 0: no dismissal, the event
    advances the state.
    """

    user_id: str
    item_id: str
    ts: int
    event_id: str | None
    partition: int
    incarnation: int
    offset: int
    dismissed_until: int = 0


class Wanted(NamedTuple):
    """Which events give a moment: those sampled (see shared.core.engagement.sampled), and those on unknown items."""

    threshold: int = 0
    unknown: bool = False


NOTHING = Wanted()


class Fresh(NamedTuple):
    """An event that advanced a state. warm: the model had something to rank by before it (else: trending).

    item: its index in the model, -1 where the model does not know it. step: how many of the user's items of this run
    the model had taken before it. dismissed: packed, as in UserState. current: index of the item that the ranking
    before it left out by itself, see InferenceModel.current.
    """

    event: Placed
    item: int
    warm: bool
    dismissed: bytes
    step: int
    current: int = -1


class Moment(NamedTuple):
    """The state of a user right before an event. hidden: (width,) float16; without a model None."""

    fresh: Fresh
    sampled: bool
    hidden: Hidden | None


class Advanced(NamedTuple):
    """What a batch came to: events applied for users who had a state to rank by (warm) and others (cold), dismissals,
    events seen before (redelivered), events repeated by event id, and states rebuilt."""

    changed: set[str]
    warm: list[Placed]
    cold: list[Placed]
    dismissed: list[Placed]
    redelivered: int
    repeated: list[Placed]
    rebuilt: int
    moments: list[Moment]


def advance_states(
    states: Mapping[str, UserState],
    events: Iterable[Placed],
    model: InferenceModel | None,
    recent_limit: int,
    wanted: Wanted = NOTHING,
) -> Advanced:
    """Apply the events, in order, to the states of their users, in place.

    The outcome for a user depends only on the user's events, not on how they are split into batches or how often
    they are delivered. A state made by another model is rebuilt from its recent items first. Moments change nothing.
    """
    result = Advanced(set(), [], [], [], 0, [], 0, [])
    changed, warm_events, cold_events = result.changed, result.warm, result.cold
    steps: dict[str, list[int]] = {}
    cold: set[str] = set()
    chosen: list[tuple[Fresh, bool]] = []
    redelivered = rebuilt = 0
    index: Mapping[str, int] = {} if model is None else model.index
    threshold, unknown = wanted
    for event in events:
        user_id, item_id, ts, event_id, partition, incarnation, offset, until = event
        state = states[user_id]
        if state.has_applied(partition, incarnation, offset):
            redelivered += 1
            continue
        changed.add(user_id)
        state.mark_applied(partition, incarnation, offset + 1)
        if event_id is not None and not state.remember_event_id(event_id):
            result.repeated.append(event)
            continue
        if until:
            result.dismissed.append(event)
            state.dismiss(item_id, until, ts // 1000)
            continue
        taken = steps.get(user_id)
        if taken is None:
            rebuilt += state.recent_count > 0 and model is not None and state.fingerprint != model.fingerprint
            taken = steps[user_id] = _begin(state, model)
            if not taken and state.hidden.count(0) == len(state.hidden):
                cold.add(user_id)
        item = index.get(item_id, -1)
        # As shared.core.engagement.sampled does; a call for each event would cost as much as the rest of this.
        in_sample = (offset * STRIDE + partition * PHASE) & MASK < threshold
        if in_sample or (unknown and item < 0):
            current = -1 if model is None or model.repeats else model.current(state.recent_items())
            fresh = Fresh(event, item, user_id not in cold, state.dismissed, len(taken), current)
            chosen.append((fresh, in_sample))
        (cold_events if user_id in cold else warm_events).append(event)
        state.push_item(item_id, recent_limit)
        state.events += 1
        state.last_ts = ts
        if item >= 0:
            taken.append(item)
            cold.discard(user_id)
    moments = _run(states, steps, model, chosen)
    return result._replace(redelivered=redelivered, rebuilt=rebuilt, moments=moments)


def _begin(state: UserState, model: InferenceModel | None) -> list[int]:
    """Make a state ready for the user's first new event of the batch; the items to rebuild it from, if it is another
    model's."""
    if model is None:
        state.hidden, state.fingerprint = b"", 0  # it would miss this event: to be rebuilt when a model comes
    elif state.fingerprint != model.fingerprint:
        state.hidden, state.fingerprint = b"", model.fingerprint
        return model.known(state.recent_items())
    return []


def _run(
    states: Mapping[str, UserState],
    steps: Mapping[str, list[int]],
    model: InferenceModel | None,
    chosen: Sequence[tuple[Fresh, bool]],
) -> list[Moment]:
    """Advance the hidden states of these users by their items, all in one packed run; the chosen moments on the way."""
    if model is None or not steps:
        return [Moment(fresh, taken, None) for fresh, taken in chosen]
    size = 2 * model.width
    zeros = bytes(size)
    joined = b"".join([states[user].hidden or zeros for user in steps])
    hidden = np.frombuffer(joined, dtype=np.float16).reshape(len(steps), model.width)
    rows = {user: row for row, user in enumerate(steps)} if chosen else {}
    marks = [(rows[fresh.event.user_id], fresh.step) for fresh, _ in chosen]
    after, before = model.advance_recording(hidden, list(steps.values()), marks)
    raw = after.tobytes()
    for row, user in enumerate(steps):
        states[user].hidden = raw[row * size : (row + 1) * size]
    return [Moment(fresh, taken, state) for (fresh, taken), state in zip(chosen, before, strict=True)]
