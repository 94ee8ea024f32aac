"""Forgetting a user: the state goes, and no event published before can bring it back."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import msgspec

from services.recommender.outbox import Outbox, OutRecord
from services.recommender.topics import Topics
from shared.core.errors import StateDamaged, Unavailable
from shared.core.ports import StateStore, StateWrite
from shared.core.progress import Progress, decode_progress
from shared.core.ranking import Forget, StateUpdate, encode_update
from shared.core.state import MOST_ENTRIES, UserState, decode_state, encode_state, token_of

log = logging.getLogger(__name__)

_ATTEMPTS = 50
"""A write is refused only when another's took place."""


class TopicNames(NamedTuple):
    """The topics that take part."""

    interactions: str
    recommendations: str
    state_updates: str
    forgets: str


class Forgetter:
    """Forgets users; see ``forget``."""

    def __init__(
        self,
        store: StateStore,
        topics: Topics,
        outbox: Outbox,
        names: TopicNames,
        clock: Callable[[], float] = time.time,
        timeout_s: float = 10.0,
    ) -> None:
        """timeout_s: of ``empty``."""
        self._store = store
        self._topics = topics
        self._outbox = outbox
        self._names = names
        self._clock = clock
        self._timeout_s = timeout_s
        # Of its own: where Kafka hangs they wait for each other, and not all that is asked of this process for them.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="forget")

    async def empty(self, user_id: str) -> tuple[Forget, list[int]]:
        """``empty_state`` in a thread. Raises Unavailable where that takes too long, and what that raises."""
        work = asyncio.get_running_loop().run_in_executor(self._pool, self.empty_state, user_id)
        try:
            return await asyncio.wait_for(work, self._timeout_s)
        except TimeoutError as error:
            raise Unavailable(f"not forgotten within {self._timeout_s:g} s: ask again") from error

    def close(self) -> None:
        """Forget nobody more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def empty_state(self, user_id: str) -> tuple[Forget, list[int]]:
        """Steps 1 and 2, blocking: (what to tell others, partitions of the state-updates topic).

        1. Note where each partition of the interactions ends: all that was published so far lies below.
        2. Put an empty state in the place of the user's, to which everything below has already been applied. A
           consumer at work on the old state fails to write it, reads the empty one and skips those events.

        Raises Unavailable, TopicMissing.
        """
        life, partitions = self._topics.describe(self._names.interactions)
        ends = self._topics.end_offsets(self._names.interactions, partitions)
        stored = self._store.read_progress(self._names.interactions, partitions)
        incarnations = {
            number: _incarnation(value, life, ends[number]) for number, value in zip(partitions, stored, strict=True)
        }
        _, update_partitions = self._topics.describe(self._names.state_updates)
        forget = Forget(user_id, int(self._clock() * 1000), ends)
        for _ in range(_ATTEMPTS):
            value = self._store.read([user_id])[0]
            state = _emptied(value, incarnations, ends)
            if self._store.write([StateWrite(user_id, token_of(value), encode_state(state))])[0]:
                return forget, update_partitions
        raise Unavailable(f"the state store refused to replace a state {_ATTEMPTS} times in a row")

    async def tell(self, forget: Forget, update_partitions: list[int]) -> None:
        """Step 3: tell the retrainer, remove the published ranking, and have every emitter look again.

        The update goes to all partitions, for an emitter at work on the old state may still publish its ranking:
        it meets the update afterwards, reads the empty state and removes the ranking. Raises Unavailable.
        """
        key = forget.user_id.encode()
        update = encode_update(StateUpdate([forget.user_id], forgotten=True, written_at=forget.requested_at))
        await self._outbox.publish(
            [
                OutRecord(self._names.forgets, key, msgspec.json.encode(forget)),
                OutRecord(self._names.recommendations, key, None),
                *(OutRecord(self._names.state_updates, key, update, number) for number in update_partitions),
            ]
        )


def _incarnation(value: bytes | None, life: str, end: int) -> int:
    """What the consumer calls, or will call, the present life of a partition."""
    progress = Progress(life, 0, 0, 0, [])
    if value is not None:
        try:
            stored = decode_progress(value)
        except StateDamaged as error:
            log.error("the stored progress of a partition cannot be read: %s", error)
        else:
            if stored.incarnation == life:
                generation = stored.generation + (stored.next_offset > end)
                progress = Progress(life, generation, 0, 0, [])
    return progress.incarnation_id()


def _emptied(value: bytes | None, incarnations: Mapping[int, int], ends: Mapping[int, int]) -> UserState:
    try:
        state = decode_state(value)
    except StateDamaged:
        state = UserState(token=token_of(value))
    state.forget()
    # Where there are more partitions than a state can name, the user's own come first.
    for number in sorted(incarnations, key=lambda n: n not in state.applied):
        if number in state.applied or len(state.applied) < MOST_ENTRIES:
            incarnation, end = incarnations[number], ends[number]
            held = state.applied.get(number)
            if held is not None and held[0] == incarnation:
                end = max(end, held[1])
            state.mark_applied(number, incarnation, end)
    return state
