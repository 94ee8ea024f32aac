"""Records into events: which advance a state, which dismiss an item, and what they tell of what was served."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from services.consumer.advance import Placed
from services.consumer.partitions import Partition
from shared.core.errors import InvalidEvent
from shared.core.events import EventRules, decode
from shared.core.ports import Record

Place = tuple[int, int, int]
"""(partition, offset, time of the event in ms)"""


@dataclass(slots=True)
class Decoded:
    """The records of one poll. served: "shown", "clicked", "dismissed" -> where."""

    events: list[Placed] = field(default_factory=list)
    bad: list[tuple[Record, InvalidEvent]] = field(default_factory=list)
    ignored: int = 0
    served: dict[str, list[Place]] = field(default_factory=lambda: {"shown": [], "clicked": [], "dismissed": []})


def decode_records(
    records: Mapping[int, Sequence[Record]],
    owned: Mapping[int, Partition],
    rules: EventRules,
    now_ms: int,
    dismiss_s: int,
) -> Decoded:
    """All records, those of a partition in its order. dismiss_s: how long a dismissed item is not offered."""
    result = Decoded()
    events, shown = result.events, result.served["shown"]
    clicked, dismissed = result.served["clicked"], result.served["dismissed"]
    for number, batch in records.items():
        incarnation = owned[number].incarnation
        for record in batch:
            try:
                event = decode(record.value, now_ms, rules)
            except InvalidEvent as error:
                result.bad.append((record, error))
                continue
            kind, offset, ts = event.event_type, record.offset, event.ts
            until = 0
            if kind in rules.impression_types:
                shown.append((number, offset, ts))
            if rules.advances(kind):
                if event.recommendation_id is not None:
                    clicked.append((number, offset, ts))
            elif kind in rules.dismiss_types:
                dismissed.append((number, offset, ts))
                until = ts // 1000 + dismiss_s
            else:
                result.ignored += 1
                continue
            events.append(Placed(event.user_id, event.item_id, ts, event.event_id, number, incarnation, offset, until))
    return result
