"""What is popular now, over all partitions: the ranking for those of whom nothing is known."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import msgspec

from shared.core.errors import DriftwoodError, StateDamaged
from shared.core.ports import StateStore
from shared.core.progress import Progress, decode_progress
from shared.core.state import TOKEN_BYTES
from shared.core.trending import Trending

log = logging.getLogger(__name__)

_PARTITIONS_S = 30.0
"""How often the number of partitions is asked for."""


class Popular(NamedTuple):
    """Items by decayed count, best first; the best scores 1."""

    items: tuple[str, ...] = ()
    names: tuple[bytes, ...] = ()
    scores: tuple[float, ...] = ()


class TrendingView:
    """Merges the counts that consumers keep beside their progress, about once a second, in a thread of its own.

    partitions: the numbers of the partitions of ``topic``, asked of the broker. While Redis or the broker does not
    answer, the last view stays. on_counts: called at each look with all partitions' progress and the merged counts.
    """

    def __init__(
        self,
        store: StateStore,
        topic: str,
        partitions: Callable[[], Iterable[int]],
        half_life_s: float,
        keep: int,
        refresh_s: float,
        on_counts: Callable[[Sequence[Progress], Trending], None] = lambda progresses, counts: None,
    ) -> None:
        self._store = store
        self._topic = topic
        self._ask_partitions = partitions
        self._half_life_s = half_life_s
        self._keep = keep
        self._refresh_s = refresh_s
        self._on_counts = on_counts
        self._merged = Trending(half_life_s, keep)
        self._partitions: list[int] = []
        self._ask_after = 0.0
        self._decoded: dict[int, tuple[bytes, Progress | None]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="trending", daemon=True)
        self.current = Popular()

    def start(self) -> None:
        """Begin to refresh in the background."""
        self._thread.start()

    def stop(self) -> None:
        """Refresh no more."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def _run(self) -> None:
        failing = False
        while not self._stop.is_set():
            try:
                self.refresh()
                failing = False
            except DriftwoodError as error:
                if not failing:
                    log.warning("trending stays as it was: %s", error, extra={"topic": self._topic})
                failing = True
            except Exception:  # of whatever kind: the next turn may be better, and without this thread none comes
                if not failing:
                    log.exception("trending stays as it was", extra={"topic": self._topic})
                failing = True
            self._stop.wait(self._refresh_s)

    def refresh(self) -> None:
        """Read the counts once. Raises Unavailable, TopicMissing."""
        if time.monotonic() >= self._ask_after:
            try:
                self._partitions = sorted(self._ask_partitions())
                self._ask_after = time.monotonic() + _PARTITIONS_S
            except DriftwoodError:
                if not self._partitions:
                    raise
                self._ask_after = time.monotonic() + 5.0
        values = self._store.read_progress(self._topic, self._partitions)
        fresh = [self._decode(number, value) for number, value in zip(self._partitions, values, strict=True) if value]
        progresses = [progress for _, progress in fresh if progress is not None]
        if any(changed for changed, _ in fresh) or not self.current.items:
            self._merged = merged = Trending(self._half_life_s, self._keep)
            for progress in progresses:
                if progress.weights:
                    merged.merge(progress.landmark, progress.weights, progress.total)
            self.current = _as_popular(merged.top(self._keep))
        self._on_counts(progresses, self._merged)

    def _decode(self, number: int, value: bytes) -> tuple[bool, Progress | None]:
        """(whether it changed since the last look, the progress)."""
        token = value[:TOKEN_BYTES]
        held = self._decoded.get(number)
        if held is not None and held[0] == token:
            return False, held[1]
        progress: Progress | None = None
        try:
            progress = decode_progress(value)
        except StateDamaged as error:
            place = {"topic": self._topic, "partition": number}
            log.error(
                "the stored progress of a partition cannot be read, trending is without it: %s", error, extra=place
            )
        self._decoded[number] = (token, progress)
        return True, progress


def _as_popular(top: list[tuple[str, float]]) -> Popular:
    if not top or top[0][1] <= 0:
        return Popular()
    best = top[0][1]
    items = tuple(item for item, _ in top)
    return Popular(
        items,
        tuple(msgspec.json.encode(item) for item in items),
        tuple(float(f"{weight / best:.6g}") for _, weight in top),
    )
