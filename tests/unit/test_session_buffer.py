"""What the session logger has in hand of one partition."""

from __future__ import annotations

import json

from services.retrainer.session_buffer import SessionBuffer
from shared.adapters.memory import MemoryRecord
from shared.core.events import EventRules

NOW_MS = 1_700_000_000_000


def records(*offsets: int) -> list[MemoryRecord]:
    def value(n: int) -> bytes:
        return json.dumps({"user_id": "u", "item_id": f"i{n}", "event_type": "view", "ts": NOW_MS}).encode()

    return [MemoryRecord("interactions", 0, n, NOW_MS, b"u", value(n)) for n in offsets]


def test_records_that_were_delivered_before_are_left_out():
    buffer = SessionBuffer(0, 7, [(5, None)])
    assert buffer.add(records(3, 4, 5, 6), EventRules(), NOW_MS) == (2, 0)
    assert buffer.add(records(6, 7), EventRules(), NOW_MS) == (1, 0)
    batch = buffer.batch(NOW_MS)
    assert (batch.first, batch.next, batch.offsets) == (5, 8, [5, 6, 7])


def test_a_range_ends_where_the_log_has_the_rest():
    buffer = SessionBuffer(0, 7, [(2, 4), (9, None)])
    buffer.add(records(2, 3, 4, 5), EventRules(), NOW_MS)
    assert buffer.range_done
    batch = buffer.batch(NOW_MS)
    assert (batch.first, batch.next, batch.offsets) == (2, 4, [2, 3])
    assert buffer.next_range() == 9
    assert not buffer.range_done
    buffer.add(records(9), EventRules(), NOW_MS)
    assert buffer.batch(NOW_MS).offsets == [9]


def test_offsets_without_records_are_covered():
    """Kafka uses offsets for its own marks too, and the last one of a range may be one of those."""
    buffer = SessionBuffer(0, 7, [(0, 4), (8, None)])
    buffer.add(records(0, 1, 2), EventRules(), NOW_MS)
    assert not buffer.range_done
    buffer.add(records(5, 6), EventRules(), NOW_MS)
    assert buffer.range_done
    assert (buffer.batch(NOW_MS).next, buffer.batch(NOW_MS).offsets) == (4, [0, 1, 2])
