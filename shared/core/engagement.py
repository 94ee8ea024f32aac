"""Engagement on the wire: were the users' next actions in the rankings that were held for them?

Each outcome is a rank: the place of the chosen item in the user's ranking before the event advanced the state
(prequential: test, then learn). Outcomes name their offsets, so that a reader which remembers how far it has come
counts none twice, however batches overlap after a crash.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated

import msgspec

CUTOFF = 20
"""Ranks beyond are misses."""

HITS_AT = (1, 5, 10, 20)

SERVED = ("shown", "clicked", "dismissed")
"""What became of recommendations: impressions, actions that name a recommendation, dismissals."""

SAMPLE_ALL = 1 << 32
"""The threshold at which every event is sampled."""

STRIDE, PHASE, MASK = 0x9E3779B1, 0x85EBCA6B, 0xFFFFFFFF
"""Of the sample; the first is 2^32 by the golden ratio."""


def sampled(partition: int, offset: int, threshold: int) -> bool:
    """Whether an event is in a sample of ``threshold / 2**32`` of all.

    Multiples of the golden ratio modulo one: any run of offsets is sampled as evenly as can be, and again alike.
    """
    return (offset * STRIDE + partition * PHASE) & MASK < threshold


Count = Annotated[int, msgspec.Meta(ge=0)]
Rank = Annotated[int, msgspec.Meta(ge=0, le=CUTOFF)]


class EngagementBatch(msgspec.Struct, frozen=True, kw_only=True):
    """Outcomes of one range of a partition, for one model version and strategy.

    Batches of the same version, strategy, partition and incarnation are published in the order of their ranges; after
    a crash they may overlap. All lists of offsets are relative to ``first_offset`` and rise.
    """

    model_version: str
    """Empty for trending."""
    strategy: str
    partition: Count
    incarnation: Count
    """Which life of the partition the offsets belong to, as in the users' states."""
    first_offset: Count
    next_offset: Count
    seen: Count
    """Events of the range that could have been scored."""
    count: Count
    """Events that were: the sample."""
    hits: dict[str, Count]
    """"1", "5", "10", "20" -> outcomes with at most that rank."""
    reciprocal_rank: Annotated[float, msgspec.Meta(ge=0)]
    """Sum of 1/rank; a miss adds nothing."""
    offsets: list[Count]
    ranks: list[Rank]
    """1 to 20; 0: a miss."""
    ts: int
    """Time of the newest event of the range, ms since the epoch."""
    served: dict[str, Count]
    """"shown", "clicked", "dismissed" -> events of the range, of whatever version: all in one batch of the range."""
    served_offsets: dict[str, list[Count]] = msgspec.field(default_factory=dict)
    """Where these events lie."""


def engagement_batch(
    source: tuple[str, str],
    partition: int,
    incarnation: int,
    covered: tuple[int, int],
    seen: int,
    outcomes: Sequence[tuple[int, int]],
    ts: int,
    served: Mapping[str, Sequence[int]],
) -> EngagementBatch:
    """A batch with its sums. source: (model version, strategy); covered: (first, next) offset; outcomes: (offset, rank)
    by offset; served: kind -> offsets. Offsets are absolute."""
    first, end = covered
    ranks = [rank for _, rank in outcomes]
    return EngagementBatch(
        model_version=source[0],
        strategy=source[1],
        partition=partition,
        incarnation=incarnation,
        first_offset=first,
        next_offset=end,
        seen=seen,
        count=len(ranks),
        hits={str(k): hits_at(ranks, k) for k in HITS_AT},
        reciprocal_rank=reciprocal_ranks(ranks),
        offsets=[offset - first for offset, _ in outcomes],
        ranks=ranks,
        ts=ts,
        served={kind: len(served.get(kind, ())) for kind in SERVED},
        served_offsets={kind: [at - first for at in offsets] for kind, offsets in served.items() if offsets},
    )


def hits_at(ranks: Iterable[int], k: int) -> int:
    """How many of the ranks are 1 to ``k``."""
    return sum(0 < rank <= k for rank in ranks)


def reciprocal_ranks(ranks: Iterable[int]) -> float:
    """Sum of 1/rank over those in the ranking."""
    return sum(1.0 / rank for rank in ranks if rank)


def trimmed(batch: EngagementBatch, counted_to: int) -> EngagementBatch | None:
    """The batch without what lies below ``counted_to``; None if nothing of its range is left.

    ``seen`` is only known for the whole range: its share of the offsets left stands for it.
    """
    if counted_to <= batch.first_offset:
        return batch
    if counted_to >= batch.next_offset:
        return None
    first = batch.first_offset
    skip = counted_to - first
    outcomes = [(first + o, rank) for o, rank in zip(batch.offsets, batch.ranks, strict=True) if o >= skip]
    served = {kind: [first + o for o in offsets if o >= skip] for kind, offsets in batch.served_offsets.items()}
    share = (batch.next_offset - counted_to) / (batch.next_offset - first)
    seen = max(len(outcomes), round(batch.seen * share))
    source, covered = (batch.model_version, batch.strategy), (counted_to, batch.next_offset)
    return engagement_batch(source, batch.partition, batch.incarnation, covered, seen, outcomes, batch.ts, served)


class Counted:
    """How far a reader has come: what it is given twice, it counts once."""

    def __init__(self, places: Mapping[tuple[str, str, int, int], int] | None = None) -> None:
        self.places = dict(places or {})
        """(model version, strategy, partition, incarnation) -> next offset. Versions come through different partitions
        of the topic, so each has an order of its own."""

    def take(self, batch: EngagementBatch) -> EngagementBatch | None:
        """What is new in the batch, None if nothing; from now on it counts as known."""
        key = (batch.model_version, batch.strategy, batch.partition, batch.incarnation)
        have = self.places.get(key, 0)
        if batch.next_offset > have:
            self.places[key] = batch.next_offset
        return trimmed(batch, have)


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(EngagementBatch)


def encode_engagement(batch: EngagementBatch) -> bytes:
    """JSON."""
    return _encoder.encode(batch)


def decode_engagement(value: bytes) -> EngagementBatch:
    """Raises msgspec.DecodeError (a ValidationError, too) for anything else."""
    return _decoder.decode(value)
