"""Forgotten users, out of the session log: wishes from the topic, and those who wait until they are fulfilled."""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future

import msgspec

from shared.core.errors import DriftwoodError, Unavailable
from shared.core.ports import InteractionSource, Record
from shared.core.ranking import Forget
from shared.core.session_log_port import Cut, ForgetsReader, Forgotten, SessionLog, SessionLogHooks

log = logging.getLogger(__name__)

_decoder = msgspec.json.Decoder(Forget)
_READ_S = 1.0
"""How often the topic is read where nobody waits."""
_ZOMBIE_MS = 86_400_000
"""Whoever still holds an event in memory that was read before a wish, writes it within a day or never."""


class Forgetting:
    """``ask`` is for any thread, the other methods for the one that reads the interactions."""

    def __init__(
        self, source: InteractionSource, session_log: SessionLog, reader: ForgetsReader, hooks: SessionLogHooks
    ) -> None:
        self._source = source
        self._log = session_log
        self._reader = reader
        self._hooks = hooks
        self._requests: queue.SimpleQueue[Future[None]] = queue.SimpleQueue()
        self._waiting: list[Future[None]] = []
        self._read_at = float("-inf")

    def ask(self, timeout_s: float, problem: Callable[[], str | None]) -> None:
        """Wait until ``turn`` has done it. Raises Unavailable, with the problem, where that takes too long."""
        request: Future[None] = Future()
        self._requests.put(request)
        try:
            request.result(timeout_s)
        except TimeoutError as error:
            request.cancel()
            raise Unavailable(f"session log: not ready in {timeout_s:.0f} s: {problem() or 'busy'}") from error

    def turn(self, flush: Callable[[], None], beat: Callable[[], None]) -> None:
        """Take in new wishes; where someone waits and there are no more, ``flush`` what was read and fulfil them."""
        self._collect()
        if self._waiting or time.monotonic() - self._read_at >= _READ_S:
            self._read_at = time.monotonic()
            self._read()
        if self._waiting and not self._reader.lag():
            flush()
            self.apply(beat)
            served, self._waiting = self._waiting, []
            for request in served:
                if request.set_running_or_notify_cancel():
                    request.set_result(None)

    def apply(self, beat: Callable[[], None]) -> None:
        """Take the users of all known wishes out of the files. beat: as in SessionLog."""
        self._hooks.forgot(self._log.apply_forgets(beat))

    def release(self, owned: Iterable[int], now_ms: int) -> None:
        """Drop wishes that nothing can undo any more."""
        numbers = {*owned, *(partition for partition, _ in self._log.known_lives())}
        lives = self._source.incarnations(sorted(numbers))
        bounds = self._source.bounds(sorted(lives))
        kept = dict.fromkeys(numbers, (-1, 0))  # where the topic has no such partition any more
        kept |= {n: (self._log.incarnation(n, lives[n], bounds[n][1]), bounds[n][0]) for n in lives}
        self._log.release_forgets(kept, now_ms - _ZOMBIE_MS)

    def close(self) -> None:
        """Leave the group; whoever waits learns that it is over."""
        self._reader.close()
        self._collect()
        for request in self._waiting:
            if request.set_running_or_notify_cancel():
                request.set_exception(Unavailable("session log: stopped"))

    def _collect(self) -> None:
        while not self._requests.empty():
            self._waiting.append(self._requests.get())

    def _read(self) -> None:
        """Wishes into the log, and only then never again from the topic."""
        records = self._reader.poll(0.02, 1000)
        if not records:
            return
        try:
            for wish in resolve(records, self._source, self._log):
                self._log.forget(wish)
            self._reader.commit(records)
        except DriftwoodError:
            self._reader.rewind(records)
            raise


def resolve(records: Sequence[Record], source: InteractionSource, session_log: SessionLog) -> list[Forgotten]:
    """What each wish cuts off: in the present lives of the partitions all below its offsets, in earlier lives all.

    The offsets are taken to be those of the life that the topic has now. Where it was made anew between the wish and
    this reading, too much is forgotten rather than too little. Raises TopicMissing, Unavailable.
    """
    wishes = [wish for record in records if (wish := _decoded(record)) is not None]
    if not wishes:
        return []
    logged = session_log.known_lives()
    numbers = sorted({n for wish in wishes for n in wish.end_offsets} | {n for n, _ in logged})
    lives = source.incarnations(numbers)
    bounds = source.bounds(sorted(lives))
    present = {n: session_log.incarnation(n, lives[n], bounds[n][1]) for n in lives}
    earlier = [Cut(n, life, None) for n, life in sorted(logged) if present.get(n) != life]
    return [
        Forgotten(
            wish.user_id,
            wish.requested_at,
            [Cut(n, present[n], end) for n, end in sorted(wish.end_offsets.items()) if n in present] + earlier,
        )
        for wish in wishes
    ]


def _decoded(record: Record) -> Forget | None:
    if record.value is None:
        return None
    try:
        return _decoder.decode(record.value)
    except msgspec.DecodeError as error:
        place = {"partition": record.partition, "offset": record.offset}
        log.error("a forget cannot be read and is left out: %s", error, extra=place)
        return None
