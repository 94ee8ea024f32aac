"""Dead letters that cannot be sent as they came: the stream goes on, and they tell where the rest is."""

from __future__ import annotations

import pytest

from shared.adapters.kafka import RenewedPublisher
from shared.adapters.memory import MemoryBroker, MemoryPublisher, MemoryStateStore
from shared.core.errors import Unavailable
from shared.core.state import decode_state
from tests.unit.test_replay_property import NOW_MS, Member, value

BIG = 20 << 20


def letters(broker: MemoryBroker) -> list[tuple[bytes | None, int, dict[str, str]]]:
    """Key, length of the value, headers."""
    return [
        (record.key, len(record.value or b""), {name: text.decode() for name, text in record.headers})
        for record in broker.records("dlq")
    ]


def member_on(broker: MemoryBroker, store: MemoryStateStore) -> Member:
    member = Member(broker, store, publisher=RenewedPublisher(lambda: MemoryPublisher(broker)))
    member.source.assign([0])
    return member


def log_with(bad_key: bytes | None, bad_value: bytes | None) -> MemoryBroker:
    broker = MemoryBroker(partitions=1)
    broker.create("interactions")
    for n in range(5):
        if n == 2:
            broker.append("interactions", bad_key, bad_value, timestamp=NOW_MS)
        broker.append("interactions", b"u", value("u", f"i{n}", n), timestamp=NOW_MS)
    return broker


@pytest.mark.parametrize("limit", [None, 600_000, 100_000, 10_000, 2_000, 0], ids=str)
@pytest.mark.parametrize("key", [b"u", b"k" * BIG, None], ids=["key", "large key", "no key"])
def test_one_that_is_too_large_is_cut_and_what_follows_is_applied(limit: int | None, key: bytes | None):
    """At ``send`` by the producer's own limit, and at ``flush`` by the topic's."""
    broker, store = log_with(key, b"{" * BIG), MemoryStateStore()
    if limit is not None:
        broker.most_bytes["dlq"] = limit
    member = member_on(broker, store)
    for _ in range(40):
        member.turns(1)
    assert decode_state(store.users["u"]).recent_items() == [f"i{n}" for n in range(5)]
    (letter,) = {(found[0], found[1], tuple(sorted(found[2].items()))) for found in letters(broker)}
    headers = dict(letter[2])
    assert headers["value.bytes"] == str(BIG)
    assert headers["source.offset"] == "2"
    assert letter[1] <= (8 << 20 if limit is None else limit)
    assert member.service.problem is None


def test_one_without_key_and_value_is_sent_with_an_empty_key():
    broker, store = log_with(None, None), MemoryStateStore()
    member_on(broker, store).service.run(until_idle=True)
    assert decode_state(store.users["u"]).recent_items() == [f"i{n}" for n in range(5)]
    ((key, size, headers),) = letters(broker)
    assert (key, size, headers["key"]) == (b"", 0, "null")
    assert "null" in headers["error"]


def test_a_publisher_that_failed_is_made_anew():
    broker, made = MemoryBroker(partitions=1), []

    def connect() -> MemoryPublisher:
        made.append(MemoryPublisher(broker))
        return made[-1]

    publisher = RenewedPublisher(connect)
    broker.most_bytes["t"] = 3
    publisher.send("t", b"k", b"long")
    with pytest.raises(Unavailable):
        made[0].flush(1)
    with pytest.raises(Unavailable):  # the twin refuses all that follows, as kafka-python's does
        publisher.flush(1)
    publisher.send("t", b"k", b"v")
    publisher.flush(1)
    assert len(made) == 2
    assert [record.value for record in broker.records("t")] == [b"v"]
