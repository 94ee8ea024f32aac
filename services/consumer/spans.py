"""What one batch means for engagement: for each partition the range it covers and what may be scored in it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter

from services.consumer.advance import Fresh, Moment, Placed
from services.consumer.offers import Offers
from services.consumer.partitions import Partition
from shared.core.engagement import EngagementBatch, engagement_batch
from shared.core.ranking import STRATEGY_GRU, STRATEGY_TRENDING
from shared.model.inference import InferenceModel

Source = tuple[str, str]
"""(model version, strategy)"""

_TS, _PARTITION = itemgetter(2), itemgetter(4)
"""Of a Placed."""

TRENDING: Source = ("", STRATEGY_TRENDING)


@dataclass(slots=True)
class Span:
    """A range of one partition. ``owner``: the partition as it was taken over; taken again, it is another."""

    owner: Partition
    number: int
    first: int
    end: int
    seen: Counter[Source] = field(default_factory=Counter)
    outcomes: defaultdict[Source, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))
    served: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(list))


@dataclass(slots=True)
class Lot:
    """One batch: its spans, and the sampled moments that wait for their ranks."""

    spans: dict[int, Span]
    model: InferenceModel | None
    offers: Offers
    """As they were before the batch."""
    moments: Sequence[Moment] = ()
    scored: bool = False
    ts: int = 0
    """Of its newest event."""

    def source(self, fresh: Fresh) -> Source:
        """By what the user's ranking was made."""
        return (self.model.version, STRATEGY_GRU) if self.model is not None and fresh.warm else TRENDING

    def see(self, warm: Sequence[Placed], cold: Sequence[Placed]) -> None:
        """Count the events that advanced a state, scored or not."""
        for source, events in ((self.current(), warm), (TRENDING, cold)):
            for number, count in Counter(map(_PARTITION, events)).items():
                self.spans[number].seen[source] += count
            self.ts = max(self.ts, max(map(_TS, events), default=0))

    def serve(self, kind: str, places: Iterable[tuple[int, int, int]], without: frozenset[tuple[int, int]]) -> None:
        """Note (partition, offset, ts) of events that tell what became of recommendations."""
        for number, offset, ts in places:
            if (number, offset) not in without:
                self.spans[number].served[kind].append(offset)
                self.ts = max(self.ts, ts)

    def cold(self) -> bool:
        """Whether someone was offered what is trending."""
        return any(span.seen[TRENDING] for span in self.spans.values())

    def current(self) -> Source:
        """The source that what was served is reported with."""
        return TRENDING if self.model is None else (self.model.version, STRATEGY_GRU)


def merged(lots: Sequence[Lot], owned: Mapping[int, Partition]) -> tuple[list[EngagementBatch], int]:
    """Batches of what these lots came to, one for each partition and source, and the number of outcomes left out.

    Only of partitions that we own as we did then: after a restart the same offsets come again.
    """
    spans: defaultdict[int, list[Span]] = defaultdict(list)
    newest: dict[int, int] = {}
    reports: dict[int, Source] = {}
    left_out = 0
    for lot in lots:
        for number, span in lot.spans.items():
            if owned.get(number) is span.owner:
                spans[number].append(span)
                reports[number] = lot.current()
                newest[number] = max(newest.get(number, 0), lot.ts)
            else:
                left_out += sum(span.seen.values())
    return [batch for number, parts in spans.items() for batch in _of(parts, reports[number], newest[number])], left_out


def _of(spans: Sequence[Span], reports: Source, ts: int) -> list[EngagementBatch]:
    """spans: contiguous ranges of one partition, in order."""
    covered = spans[0].first, spans[-1].end
    seen: Counter[Source] = Counter()
    served: defaultdict[str, list[int]] = defaultdict(list)
    for span in spans:
        seen.update(span.seen)
        for kind, offsets in span.served.items():
            served[kind] += offsets
    if any(served.values()):
        seen[reports] += 0
    owner = spans[0].owner
    return [
        engagement_batch(
            source,
            spans[0].number,
            owner.incarnation,
            covered,
            count,
            sorted(outcome for span in spans for outcome in span.outcomes.get(source, ())),
            ts,
            served if source == reports else {},
        )
        for source, count in seen.items()
    ]


def repeated_places(repeated: Iterable[Placed]) -> frozenset[tuple[int, int]]:
    """(partition, offset) of events that were no new ones."""
    return frozenset((event.partition, event.offset) for event in repeated)
