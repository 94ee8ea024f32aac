"""Who chooses what, in a batch: the states of all choosers of items new to the model, and of a sample of others'."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from services.consumer.advance import Moment, Placed
from services.consumer.partitions import Partition
from shared.core.state import UserState
from shared.model.fold_in import FoldIn
from shared.model.inference import Hidden, InferenceModel


class Choice(NamedTuple):
    """An event on an item unknown to the model. hidden: (width,) float16, the user's state right before it."""

    event: Placed
    hidden: Hidden


def fresh_choices(moments: Iterable[Moment]) -> list[Choice]:
    """Those among the moments of events that advanced a state."""
    return [Choice(m.fresh.event, m.hidden) for m in moments if m.fresh.item < 0 and m.hidden is not None]


def redelivered_choices(
    states: Mapping[str, UserState], events: Sequence[Placed], model: InferenceModel
) -> list[Choice]:
    """Those among the events that the states have applied already: after a crash, the sums lack them.

    An unknown item does not advance the hidden state, so the state before it is the present one unless a known item
    followed. Then it is made again from the recent items before it: the same bits where these reach back to the
    user's first event or to the state's last rebuilding, else close to them. Where a user chose an item several times,
    its last place among the recent items is taken for the one meant. So counts are exact, and sums but for those who
    do the same thing twice within the second before a crash. An event that has left the recent items is not counted;
    one that its producer sent twice, on both sides of a crash, may be counted twice.
    """
    index = model.index
    seen: dict[str, list[Placed]] = {}
    for event in events:
        if event.item_id not in index and states[event.user_id].has_applied(*event[4:7]):
            seen.setdefault(event.user_id, [])
    if not seen:
        return []
    for event in events:
        if event.user_id in seen and not event.dismissed_until and states[event.user_id].has_applied(*event[4:7]):
            seen[event.user_id].append(event)
    found: list[tuple[Placed, list[int] | None]] = []
    for user, applied in seen.items():
        found += _places(states[user], applied, model)
    rebuilt = model.advance(model.start(len(found)), [items or () for _, items in found])
    width = model.width
    choices = []
    for (event, items), row in zip(found, rebuilt, strict=True):
        held = states[event.user_id].hidden
        present = items is None and len(held) == 2 * width
        choices.append(Choice(event, np.frombuffer(held, np.float16) if present else row))
    return choices


def _places(
    state: UserState, applied: Sequence[Placed], model: InferenceModel
) -> Iterable[tuple[Placed, list[int] | None]]:
    """(event on an unknown item, known items before it; None: the present state is the one before it)."""
    recent = state.recent_items()
    same_model = state.fingerprint == model.fingerprint
    for event in reversed(applied):
        at = len(recent) - 1
        while at >= 0 and recent[at] != event.item_id:
            at -= 1
        if at < 0:
            continue
        later, recent = recent[at:], recent[:at]
        same_model = same_model and not model.known(later)
        if event.item_id not in model.index:
            yield event, None if same_model else model.known(recent)


def fold(
    owned: Mapping[int, Partition],
    numbers: Iterable[int],
    choices: Iterable[Choice],
    moments: Iterable[Moment],
    fingerprint: int,
) -> None:
    """Add the choices, and the sampled moments of items that the model knows, to their partitions' sums, in the order
    of the log.

    numbers: the batch's partitions.
    """
    by_partition: dict[int, tuple[list[Choice], list[Choice], list[Choice]]] = {n: ([], [], []) for n in numbers}
    for choice in choices:
        by_partition[choice.event.partition][0].append(choice)
    for moment in moments:
        if moment.sampled and moment.hidden is not None:
            event = moment.fresh.event
            _, sampled, known = by_partition[event.partition]
            sampled.append(Choice(event, moment.hidden))
            if moment.fresh.item >= 0 and moment.fresh.warm:
                known.append(sampled[-1])
    for number, (chosen, sampled, known) in by_partition.items():
        part = owned[number]
        part.folding.begin(fingerprint)
        part.choosers.begin(fingerprint)
        events = [one.event for one in sampled]
        part.folding.observe([one.hidden for one in sampled], [e.ts for e in events], [e.item_id for e in events])
        _add(part.folding, chosen)
        _add(part.choosers, known)


def _add(sums: FoldIn, choices: list[Choice]) -> None:
    if choices:
        choices.sort(key=lambda choice: choice.event.offset)
        events = [choice.event for choice in choices]
        hidden = np.stack([choice.hidden for choice in choices])
        sums.add([event.item_id for event in events], hidden, [event.ts for event in events])
