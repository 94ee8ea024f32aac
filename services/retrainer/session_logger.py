"""The session logger's loop: interactions into the session log, and forgotten users out of it.

The log says where reading goes on. So a crash at any point leaves each event in the log once: what was not in it is
read again, and what was is not. One way out of every trouble: write what is in hand, then take all partitions over
again from what the log holds.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from services.retrainer.session_buffer import SessionBuffer
from services.retrainer.session_forgets import Forgetting
from shared.core.errors import DriftwoodError, TopicMissing, TopicRecreated, Unavailable
from shared.core.events import EventRules
from shared.core.ports import InteractionSource, Polled, Record
from shared.core.progress import Progress, has_id
from shared.core.session_log_port import ForgetsReader, LogBatch, SessionLog, SessionLogHooks
from shared.core.waiting import poll_without_records

log = logging.getLogger(__name__)

_BACKOFF_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_JOIN_S = 15.0
"""After so long without partitions, a member is a spare one."""


class SessionLogger:
    """One member of the log's consumer group. ``run`` belongs to one thread; the other methods to any.

    flush_s, flush_events: what was read goes to the log after so long, or when so many records are in memory.
    """

    def __init__(
        self,
        source: InteractionSource,
        session_log: SessionLog,
        forgets: ForgetsReader,
        rules: EventRules,
        hooks: SessionLogHooks,
        flush_s: float = 10.0,
        flush_events: int = 50_000,
        upkeep_s: float = 60.0,
        poll_s: float = 0.2,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._source = source
        self._log = session_log
        self._forgetting = Forgetting(source, session_log, forgets, hooks)
        self._rules = rules
        self._hooks = hooks
        self._flush_s, self._flush_events = flush_s, flush_events
        self._upkeep_s, self._poll_s = upkeep_s, poll_s
        self._clock = clock
        self._stop = threading.Event()
        self._buffers: dict[int, SessionBuffer] = {}
        self._to_take: set[int] = set()
        self._lives: dict[int, str] = {}
        self._begun: dict[int, tuple[str, int, int]] = {}
        """partition -> (life, incarnation, first offset) of what began anew under us and may not be in the log yet."""
        self._read: dict[int, tuple[int, int]] = {}
        """partition -> (offset after the last record read, its leader epoch)."""
        self._restart = False
        self._damaged: int | None = None
        self._failures = 0
        self._started_at = self._upkept_at = time.monotonic()
        self._caught_up = False
        self.turned_at = time.monotonic()
        """When the loop last came round, or a long piece of work in it was seen to go on, by time.monotonic()."""
        self.problem: str | None = "starting"
        """What keeps the logger from working, None while it works."""
        source.on_revoke = self._on_revoke

    def stop(self) -> None:
        """Write what is in hand, and return from ``run``. Safe to call from a signal handler."""
        self._stop.set()

    def caught_up(self) -> bool:
        """Whether all that was published before the last poll is in the log."""
        return self._caught_up

    def apply_forgets(self, timeout_s: float = 60.0) -> None:
        """Return when the log holds all that was read so far, and nothing of users whose wish came before this call.

        Raises Unavailable where that takes longer. Not to be called from the thread of ``run``.
        """
        if self._stop.is_set():
            raise Unavailable("session log: stopped")
        self._forgetting.ask(timeout_s, lambda: self.problem)

    def run(self, until_idle: bool = False) -> None:
        """The loop. Errors that waiting can heal are waited out; others end it."""
        while not self._stop.is_set():
            if self.step() and until_idle:
                break
        self._finish()

    def step(self) -> bool:
        """One turn of the loop; whether there was nothing to do."""
        self._beat()
        try:
            idle = self._turn()
        except (Unavailable, TopicMissing, TopicRecreated) as error:
            self._fail(error)
            return False
        joined = self._buffers or time.monotonic() - self._started_at > _JOIN_S
        self._failures, self.problem = 0, None if joined else "joining the consumer group"
        return idle

    def _beat(self) -> None:
        self.turned_at = time.monotonic()

    def _turn(self) -> bool:
        if self._restart:
            self._flush(self._buffers)
            self._take(self._buffers)
            self._restart = False
        polled = self._source.poll(self._poll_s, max(1, self._flush_events - self._pending()))
        took = self._rebalanced(polled)
        # What came of a partition just taken over was fetched before: it is read again from where the log says.
        records = {number: batch for number, batch in polled.records.items() if number not in took}
        if records:
            self._add(records)
        self._flush_due()
        self._forgetting.turn(lambda: self._flush(self._buffers), self._beat)
        self._keep_up()
        lag = self._source.lag()
        self._hooks.lag(lag)
        idle = not polled.records and not took
        known = bool(self._buffers) and lag.keys() >= self._buffers.keys()  # not so before the first fetch
        self._caught_up = idle and known and not any(lag.values()) and not self._pending()
        return idle

    def _pending(self) -> int:
        return sum(map(len, self._buffers.values()))

    def _rebalanced(self, polled: Polled) -> set[int]:
        """The partitions taken over."""
        self._note_rebalance(polled)
        self._take(self._to_take)
        took = self._to_take & self._buffers.keys()  # a broker that is behind may not know of all of them yet
        self._to_take -= took
        return took

    def _note_rebalance(self, polled: Polled) -> None:
        for number in polled.revoked:
            self._buffers.pop(number, None)
            self._begun.pop(number, None)
            self._read.pop(number, None)
        self._to_take = (self._to_take - polled.revoked) | polled.assigned

    def _take(self, partitions: Iterable[int]) -> None:
        """Read these from where the log says. What is in hand of them is dropped."""
        wanted = sorted(partitions)
        if not wanted:
            return
        lives = self._source.incarnations(wanted)
        bounds = self._source.bounds(sorted(lives))
        for number in wanted:
            self._buffers.pop(number, None)
            if number in lives:
                first, end = bounds[number]
                if self._lives.get(number) != lives[number]:
                    self._read.pop(number, None)
                incarnation, missing = self._place(number, lives[number], first, end)
                self._buffers[number] = SessionBuffer(number, incarnation, missing)
                self._lives[number] = lives[number]
                read, epoch = self._read.get(number, (0, -1))
                self._source.seek(number, missing[0][0], epoch if missing[0][0] <= read else -1)
                place = {"topic": self._source.topic, "partition": number, "offset": missing[0][0], "end": end}
                log.info("session log: partition taken over", extra=place)

    def _place(self, number: int, life: str, first: int, end: int) -> tuple[int, list[tuple[int, int | None]]]:
        """(The present incarnation of a partition, what is to be read of it)."""
        if has_id(life) and number in self._read:
            lost = self._source.lost_from(number, *self._read[number])
            end = end if lost is None else max(first, lost)
        incarnation = self._log.incarnation(number, life, end)
        begun = self._begun.get(number)
        anew = incarnation != Progress(life, 0, 0, 0, []).incarnation_id()
        if has_id(life) and (anew or begun is not None):
            known = self._log.known_lives()
            if begun is not None and begun[0] == life and (number, begun[1]) not in known:
                return begun[1], [(begun[2], None)]
            if anew and (number, incarnation) not in known:
                self._begin_anew(number, life, incarnation, first, end)
                return incarnation, [(end, None)]
        return incarnation, self._log.missing(number, incarnation, first, end)

    def _begin_anew(self, number: int, life: str, incarnation: int, first: int, end: int) -> None:
        """The broker lost the end of its log, and offsets began anew within the topic's life. What is left of it is in
        our log under the former incarnation: said there, if anything is left, for those who come after us."""
        place = {"topic": self._source.topic, "partition": number}
        log.error("session log: the broker lost its log from %d on", end, extra=place)
        if first < end:
            self._log.append(LogBatch(number, incarnation, first, end, (), (), int(self._clock() * 1000)))
        self._begun[number] = life, incarnation, end
        self._read.pop(number, None)

    def _add(self, records: Mapping[int, Sequence[Record]]) -> None:
        """Into the buffers, if the topic is still the one whose offsets we know."""
        lives = self._source.incarnations(list(self._buffers))
        if lives != {number: self._lives[number] for number in self._buffers}:
            raise TopicRecreated(f"topic {self._source.topic} was deleted and made again")
        now_ms = int(self._clock() * 1000)
        for number, batch in records.items():
            if (buffer := self._buffers.get(number)) is None:
                continue
            accepted, invalid = buffer.add(batch, self._rules, now_ms)
            self._read[number] = batch[-1].offset + 1, batch[-1].leader_epoch
            self._hooks.logged("logged", accepted)
            self._hooks.logged("invalid", invalid)
            if buffer.range_done:
                self._flush([number])
                self._source.seek(number, buffer.next_range())

    def _flush_due(self) -> None:
        if self._pending() >= self._flush_events:
            self._flush(self._buffers)
        else:
            self._flush([number for number, buffer in self._buffers.items() if buffer.age_s >= self._flush_s])

    def _flush(self, partitions: Iterable[int]) -> None:
        """Write buffers to the log. Raises Unavailable, and then those not written are as they were."""
        offsets: dict[int, int] = {}
        for number in list(partitions):
            buffer = self._buffers[number]
            if len(buffer):
                began = time.monotonic()
                self._log.append(buffer.batch(int(self._clock() * 1000)))
                buffer.clear()
                self._hooks.flushed(time.monotonic() - began)
                offsets[number] = buffer.next
        if offsets:
            self._source.commit(offsets)  # nothing starts from it: it is there for those who look at the lag

    def _keep_up(self) -> None:
        if time.monotonic() - self._upkept_at < self._upkeep_s:
            return
        self._upkept_at = time.monotonic()
        now_ms = int(self._clock() * 1000)
        self._forgetting.apply(self._beat)
        upkept, summary = self._log.upkeep(now_ms, self._beat), self._log.summary()
        self._hooks.upkept(upkept, summary)
        if self._damaged is not None and summary.damaged > self._damaged:
            self._restart = True  # what a file held that was set aside is read again while Kafka has it
        self._damaged = summary.damaged
        self._forgetting.release(self._buffers, now_ms)

    def _on_revoke(self, partitions: frozenset[int]) -> None:
        """Called inside poll: the new owner then has nothing to read again."""
        try:
            self._flush([number for number in partitions if number in self._buffers])
        except DriftwoodError as error:
            place = {"partitions": sorted(partitions)}
            log.warning("session log: partitions handed over without a last write: %s", error, extra=place)

    def _fail(self, error: DriftwoodError) -> None:
        """Say what is wrong and wait, polling without records, so that the group does not take us for dead."""
        self.problem, self._restart, self._caught_up = str(error), True, False
        pause = _BACKOFF_S[min(self._failures, len(_BACKOFF_S) - 1)]
        self._failures += 1
        log.error("session log: %s; trying again in %.2f s", error, pause, extra={"attempt": self._failures})
        if isinstance(error, TopicRecreated):
            return
        self._note_rebalance(poll_without_records(self._source, pause, self._stop))

    def _finish(self) -> None:
        try:
            self._flush(self._buffers)
        except DriftwoodError as error:
            log.error("session log: stopping without a last write, it is read again: %s", error)
        self._source.close()
        self._forgetting.close()
