"""The partitions that this member owns: where each stands, and what is popular in it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from shared.core.errors import StateDamaged
from shared.core.ports import InteractionSource, StateStore, StoreMemory
from shared.core.progress import Mark, Progress, decode_mark, decode_progress, encode_progress, has_id
from shared.core.state import NO_TOKEN, token_of
from shared.core.trending import Trending
from shared.model.fold_in import MEMORY, FoldIn

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Partition:
    """One owned partition. ``next_offset`` counts what this member has applied, ``saved`` what Redis knows of it."""

    progress: Progress
    token: bytes
    trending: Trending
    next_offset: int
    saved: int
    incarnation: int
    folding: FoldIn
    counted: int
    """``trending`` and ``folding`` hold all below it: more than ``next_offset`` where only states were lost."""
    choosers: FoldIn
    """As ``folding``, of items that the model knows; a sample."""
    recent: Trending | None = None
    """As ``trending``, of what is popular now; None: not counted."""
    epoch: int = -1
    """Record.leader_epoch of the last record applied; -1: not known."""


class Partitions:
    """Takes partitions over at the place that Redis knows, and saves how far it came.

    Saving is by compare-and-set: a member that lost a partition without noticing cannot set back its successor.
    """

    def __init__(
        self,
        source: InteractionSource,
        store: StateStore,
        half_life_s: float,
        keep: int,
        fold_items: int = 0,
        popularity_half_life_s: float = 0.0,
        refine_items: int = 0,
    ) -> None:
        """popularity_half_life_s: of what is popular now; 0: it is not counted. refine_items: of those that the model
        knows, whose choosers are summed up."""
        self._source = source
        self._store = store
        self._half_life_s = half_life_s
        self._keep = keep
        self._fold_items = fold_items
        self._refine_items = refine_items
        self._popularity_half_life_s = popularity_half_life_s
        self._server = ""
        self._life = ""
        self.owned: dict[int, Partition] = {}

    def take(self, partitions: Iterable[int]) -> None:
        """Own these from now on, and read them from where the states in Redis stand."""
        wanted = sorted(partitions)
        if not wanted:
            return
        server = self._store.server_id()
        lives = self._source.incarnations(wanted)
        numbers = sorted(lives)
        self.drop(set(wanted) - set(numbers))  # a topic made anew may have fewer
        if not numbers:
            return
        bounds = self._source.bounds(numbers)
        stored = self._store.read_progress(self._source.topic, numbers)
        marks = self._store.read_marks(self._source.topic, numbers)
        taken: dict[int, Partition] = {}
        for number, value, held in zip(numbers, stored, marks, strict=True):
            taken[number] = self._start(number, value, held, lives[number], *bounds[number])
        for number, part in taken.items():
            self._source.seek(number, part.next_offset, part.epoch)
        self.owned.update(taken)
        # Kept where they are known: if the store was restarted since, the next write fails, and if the topic was made
        # anew, that is seen before the next records are applied; and all start again.
        self._server = self._server or server
        self._life = self._life or lives[numbers[0]]

    def _start(
        self, number: int, value: bytes | None, marks: Sequence[bytes | None], life: str, first: int, end: int
    ) -> Partition:
        place = {"topic": self._source.topic, "partition": number}
        progress = Progress(life, 0, first, 0, [])
        trending = Trending(self._half_life_s, self._keep)
        recent = Trending(self._popularity_half_life_s, self._keep) if self._popularity_half_life_s else None
        folding = FoldIn(self._fold_items, self._half_life_s)
        # Not without what is popular now: a correction is made of both.
        choosers = FoldIn(
            self._refine_items if recent is not None else 0, self._half_life_s, MEMORY,
            recent.weight if recent is not None else None,
        )  # fmt: skip
        if value is not None:
            try:
                known = decode_progress(value)
            except StateDamaged as error:
                log.error("stored progress is damaged, the partition is read from its start: %s", error, extra=place)
            else:
                trending.merge(known.landmark, known.weights, known.total)
                if recent is not None:
                    recent.merge(known.recent_landmark, known.recent, known.recent_total, known.recent_ts)
                folding.restore(known.fingerprint, known.folded, known.choices())
                choosers.restore(known.fingerprint, known.choosers)
                progress = known
        progress = self._continue(number, *self._known_better(number, progress, life), life, first, end)
        progress, start = _held_by_all(progress, [decode_mark(mark) for mark in marks], first)
        if start < progress.next_offset:
            log.warning("a part of the store lost its last writes: reading again from %d", start, extra=place)
        log.info("partition taken over", extra={**place, "offset": start, "end": end})
        return Partition(
            progress, token_of(value), trending, start, start, progress.incarnation_id(), folding,
            progress.next_offset, choosers, recent, progress.epoch,
        )  # fmt: skip

    def _known_better(self, number: int, stored: Progress, life: str) -> tuple[Progress, tuple[int, int]]:
        """(The stored progress, or what we know beyond it; how far the states go at most, and that record's epoch)."""
        part, reached = self.owned.get(number), (stored.next_offset, stored.epoch)
        if part is None or part.progress.incarnation != life:
            return stored, reached
        if part.progress.generation > (stored.generation if stored.incarnation == life else -1):
            # The offsets began anew under us, and that is not stored yet.
            began, generation = part.progress.began, part.progress.generation
            stored = Progress(life, generation, began, 0, [], began=began)
            return stored, (part.next_offset, part.epoch)
        return stored, max(reached, (part.next_offset, part.epoch))

    def _continue(
        self, number: int, known: Progress, read: tuple[int, int], life: str, first: int, end: int
    ) -> Progress:
        """The progress to go on from. read: offset and epoch, see InteractionSource.lost_from."""
        place = {"topic": self._source.topic, "partition": number}
        if known.incarnation != life:
            log.warning("the topic was made anew: reading it from its start", extra={**place, "offset": first})
            return Progress(life, 0, first, 0, [])
        if has_id(life):
            lost = self._source.lost_from(number, *read)
            began = end if lost is None else lost
            if began < read[0]:
                # What is left of the log is in the states, and what was lost is, too: only what came since is new.
                log.error("the broker lost the log from %d on, which was read to %d", began, read[0], extra=place)
                return Progress(life, known.generation + 1, max(began, first), 0, [], began=max(began, first))
        if known.next_offset > end:
            log.warning(
                "the log ends at %d, before our offset %d: its offsets began anew", end, known.next_offset, extra=place
            )
            return Progress(life, known.generation + 1, first, 0, [])
        if known.next_offset < first:
            log.error(
                "events were deleted by retention before they were read",
                extra={**place, "offset": known.next_offset, "lost": first - known.next_offset},
            )
            return Progress(life, known.generation, first, 0, [], began=known.began)
        return known

    def drop(self, partitions: Iterable[int]) -> None:
        """Own these no more."""
        for number in partitions:
            self.owned.pop(number, None)
        if not self.owned:
            self._server = self._life = ""

    @property
    def server_id(self) -> str:
        """The run of the state store that our states were read from."""
        return self._server

    def server_changed(self) -> bool:
        """Whether the store is another run of the server than the one that our states were written to."""
        server = self._store.server_id()  # asked without partitions too: it tells whether the store is there
        return bool(self.owned) and server != self._server

    def store_memory(self) -> StoreMemory:
        """How full the state store is."""
        return self._store.memory()

    def topic_changed(self) -> bool:
        """Whether the topic behind our offsets was made anew. Raises TopicMissing, Unavailable."""
        lives = self._source.incarnations(list(self.owned))
        return len(lives) < len(self.owned) or any(life != self._life for life in lives.values())

    def restart(self) -> None:
        """Take all owned partitions over again, after the store or the topic changed under us.

        Where that fails they stay owned, so that it can be tried again.
        """
        self._server = self._life = ""
        self.take(list(self.owned))

    def _progress(self, part: Partition) -> Progress:
        landmark, weights = part.trending.snapshot()
        known, folding, recent = part.progress, part.folding, part.recent
        choices = folding.typical
        now, popular = recent.snapshot() if recent is not None else (0, [])
        return Progress(
            known.incarnation, known.generation, part.next_offset, landmark, weights, part.trending.total,
            folding.fingerprint, folding.snapshot(), [state for state, _ in choices],
            now, popular, *((recent.total, recent.newest) if recent is not None else (0.0, 0)),
            [item for _, item in choices], part.choosers.snapshot(), known.began, part.epoch,
        )  # fmt: skip

    def save(self) -> tuple[dict[int, int], list[int]]:
        """Store how far we came: (partition -> offset to commit, partitions whose write was refused).

        Where one is refused, another owner was faster, and our place is not that of the stored states: ``restart``.
        """
        writes: dict[int, tuple[bytes, bytes]] = {}
        for number, part in self.owned.items():
            if part.next_offset < part.counted:
                continue  # what is stored says more than we have read again
            if part.next_offset != part.saved or part.token == NO_TOKEN:
                progress = self._progress(part)
                writes[number] = (part.token, encode_progress(progress, part.token))
        offsets: dict[int, int] = {}
        lost: list[int] = []
        for number, done in self._store.write_progress(self._source.topic, writes, self._server).items():
            part = self.owned[number]
            if done:
                part.token = token_of(writes[number][1])
                part.saved = offsets[number] = part.next_offset
            else:
                lost.append(number)
        if lost:
            place = {"topic": self._source.topic, "partitions": lost}
            log.warning("progress was changed by another: taking the partitions over again", extra=place)
        return offsets, lost


def _held_by_all(progress: Progress, marks: Sequence[Mark | None], first: int) -> tuple[Progress, int]:
    """The progress of the sums, and where reading starts so that no part of the store lacks an event."""
    same_life = [mark for mark in marks if mark is not None and mark.incarnation == progress.incarnation]
    newest = max((mark.generation for mark in same_life), default=0)
    if newest > progress.generation:  # the progress itself went back to before the offsets began anew
        began = first
        if has_id(progress.incarnation):  # not from the log's first offset: what lies before is in the states
            began = min(mark.next_offset for mark in same_life if mark.generation == newest)
        progress = Progress(progress.incarnation, newest, began, 0, [], began=began)
    start = progress.next_offset
    for mark in marks:
        known = mark is not None and (mark.incarnation, mark.generation) == (progress.incarnation, progress.generation)
        start = min(start, mark.next_offset if known and mark is not None else progress.began)
    return progress, max(start, first)
