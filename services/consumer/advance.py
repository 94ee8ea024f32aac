"""Events into states: which of them are new, and one packed run of the GRU over all of those."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from shared.core.engagement import SAMPLE_ALL, sampled
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
    the model had taken before it. dismissed: packed, as in UserState.
    """

    event: Placed
    item: int
    warm: bool
    dismissed: bytes
    step: int


class Moment(NamedTuple):
    """The state of a user right before an event. hidden: (width,) float16; without a model None."""

    fresh: Fresh
    sampled: bool
    hidden: Hidden | None


class Advanced(NamedTuple):
    """What a batch came to: events applied, seen before (redelivered), repeated by event id, and states rebuilt."""

    changed: set[str]
    fresh: list[Fresh]
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
    steps: dict[str, list[int]] = {}
    warm: dict[str, bool] = {}
    changed: set[str] = set()
    fresh: list[Fresh] = []
    repeated: list[Placed] = []
    dismissed: list[Placed] = []
    redelivered = rebuilt = 0
    index: Mapping[str, int] = {} if model is None else model.index
    for event in events:
        user_id, item_id, ts, event_id, partition, incarnation, offset, until = event
        state = states[user_id]
        if state.has_applied(partition, incarnation, offset):
            redelivered += 1
            continue
        changed.add(user_id)
        state.mark_applied(partition, incarnation, offset + 1)
        if event_id is not None and not state.remember_event_id(event_id):
            repeated.append(event)
            continue
        if until:
            dismissed.append(event)
            state.dismiss(item_id, until, ts // 1000)
            continue
        if user_id not in steps:
            rebuilt += _begin(user_id, state, model, steps, warm)
        taken = steps[user_id]
        item = index.get(item_id, -1)
        fresh.append(Fresh(event, item, warm[user_id], state.dismissed, len(taken)))
        state.push_item(item_id, recent_limit)
        state.events += 1
        state.last_ts = ts
        if item >= 0:
            taken.append(item)
            warm[user_id] = True
    chosen = _chosen(fresh, wanted)
    moments = _run(states, steps, model, chosen)
    return Advanced(changed, fresh, dismissed, redelivered, repeated, rebuilt, moments)


def _begin(
    user_id: str,
    state: UserState,
    model: InferenceModel | None,
    steps: dict[str, list[int]],
    warm: dict[str, bool],
) -> int:
    """Make a state ready for the user's first new event of the batch; 1 if it is rebuilt, else 0."""
    steps[user_id] = []
    rebuilt = 0
    if model is None:
        state.hidden, state.fingerprint = b"", 0  # it would miss this event: to be rebuilt when a model comes
    elif state.fingerprint != model.fingerprint:
        steps[user_id] = model.known(state.recent_items())
        state.hidden, state.fingerprint = b"", model.fingerprint
        rebuilt = 1 if state.recent_count else 0
    warm[user_id] = bool(steps[user_id]) or state.hidden.count(0) < len(state.hidden)
    return rebuilt


def _chosen(fresh: Sequence[Fresh], wanted: Wanted) -> list[tuple[Fresh, bool]]:
    """(event, whether sampled) for those that give a moment."""
    threshold, unknown = wanted
    if threshold >= SAMPLE_ALL:
        return [(event, True) for event in fresh]
    if not threshold and not unknown:
        return []
    chosen = []
    for event in fresh:
        placed = event.event
        taken = sampled(placed.partition, placed.offset, threshold)
        if taken or (unknown and event.item < 0):
            chosen.append((event, taken))
    return chosen


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
