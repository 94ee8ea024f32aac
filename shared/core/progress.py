"""How far the consumer has come in one partition, what was popular there and who chose new items: one value.

Stored in Redis beside the states and written after them, it is what a consumer starts from: a Redis that came back
without its last writes has lost those of the progress too, and the log is read again from there.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from itertools import chain, repeat
from typing import NamedTuple

import msgspec

from shared.core.errors import StateDamaged
from shared.core.trending import Trending

_TOKEN = struct.Struct("<II")


def has_id(life: str) -> bool:
    """Whether the broker gives topics ids, so that the life of a topic, as it is described, tells one from the next.

    Brokers before 2.8, and the embedded one, do not: there a new cluster is all that can be told. Where they do,
    offsets that went back within a life mean that the broker lost the end of its log, else that the topic is a new one.
    """
    return not life.endswith("/")


class Folded(NamedTuple):
    """An item and who chose it; see shared/model/fold_in.py."""

    item_id: str
    chosen: int
    """Events on it."""
    states: int
    """Of these, those of users who had a hidden state."""
    seen_ms: int
    """Time of the newest event, ms since the epoch."""
    total: bytes
    """The sum of these hidden states, fixed-point."""


class Progress(msgspec.Struct, array_like=True):
    """incarnation: the name of the topic's life; generation: how often its offsets began anew within that name.

    total: decayed weight of all events, where ``weights`` holds only the most popular items; 0: not known.
    fingerprint: of the model whose hidden states ``folded`` adds up; 0: of none. typical: such states of users who did
    anything, a few recent ones; typical_items: what each of them chose next. choosers: as ``folded``, of items that
    the model knows. recent, recent_landmark, recent_total: as weights, landmark and total, with a short
    half-life: what is popular now; recent_ts: time of its newest event, ms since the epoch. began: the offset at which
    this generation began. epoch: Record.leader_epoch of the last record below next_offset; -1: not known. Values stored
    before these existed are read as if they were empty.
    """

    incarnation: str
    generation: int
    next_offset: int
    landmark: int
    weights: list[tuple[str, float]]
    total: float = 0.0
    fingerprint: int = 0
    folded: list[Folded] = []
    typical: list[bytes] = []
    recent_landmark: int = 0
    recent: list[tuple[str, float]] = []
    recent_total: float = 0.0
    recent_ts: int = 0
    typical_items: list[str] = []
    choosers: list[Folded] = []
    began: int = 0
    epoch: int = -1

    def choices(self) -> list[tuple[bytes, str]]:
        """Typical states, each with the item chosen next; "" where a value stored earlier does not tell."""
        items = chain(self.typical_items, repeat(""))
        return list(zip(self.typical, items, strict=False))

    def incarnation_id(self) -> int:
        """32 bits that stand for this life of the partition in users' states."""
        return zlib.crc32(f"{self.incarnation}/{self.generation}".encode())


class Mark(msgspec.Struct, array_like=True):
    """The first three fields of a progress, kept in each part of a store whose parts may lose writes independently.

    It is written to a part after the states there: so a part that came back without its last states has an older mark.
    """

    incarnation: str
    generation: int
    next_offset: int


def recent_counts(progresses: Iterable[Progress], half_life_s: float, keep: int) -> Trending:
    """What is popular now over all these partitions."""
    counts = Trending(half_life_s, keep)
    for progress in progresses:
        if progress.recent:
            counts.merge(progress.recent_landmark, progress.recent, progress.recent_total, progress.recent_ts)
    return counts


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Progress)
_mark_decoder = msgspec.msgpack.Decoder(Mark)


def encode_progress(progress: Progress, replaces: bytes) -> bytes:
    """The value to store in place of the one with the token ``replaces``."""
    body = _encoder.encode(progress)
    counter = (int.from_bytes(replaces[:4], "little") + 1) & 0xFFFFFFFF
    return _TOKEN.pack(counter, zlib.crc32(body)) + body


def decode_progress(value: bytes) -> Progress:
    """Raises StateDamaged for anything that is no progress."""
    if zlib.crc32(memoryview(value)[8:]) != int.from_bytes(value[4:8], "little"):
        raise StateDamaged("the checksum of the progress does not match")
    try:
        return _decoder.decode(value[8:])
    except msgspec.DecodeError as error:
        raise StateDamaged(f"the progress cannot be read: {error}") from error


def mark_of(value: bytes) -> bytes:
    """The mark, as it is stored, of an encoded progress."""
    return _encoder.encode(_mark_decoder.decode(value[8:]))


def decode_mark(value: bytes | None) -> Mark | None:
    """None for none, and for one that cannot be read: then nothing is known of that part."""
    if value is None:
        return None
    try:
        return _mark_decoder.decode(value)
    except msgspec.DecodeError:
        return None
