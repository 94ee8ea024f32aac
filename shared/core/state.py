"""What is known of one user, and its one value in Redis.

Layout, little-endian, version 1:

    0   u32  write counter        ┐ together the token: a write names the token that it replaces,
    4   u32  CRC-32 of the rest   ┘ and fails where another write came first
    8   u8   format version
    9   u16  number of applied-offset entries
    11  u8   number of recent items
    12  u8   number of event-id hashes
    13  u16  bytes of hidden state
    15  u16  bytes of recent items
    17  u64  fingerprint of the model that made the hidden state (0: none)
    25  i64  time of the last applied event, ms since the epoch
    33  u32  events applied so far
    37  hidden state (IEEE half floats), applied-offset entries, event-id hashes (8 bytes each), recent items

An applied-offset entry is (u32 partition, u32 incarnation, u64 next offset): events of that partition below the
offset are in the state. The incarnation tells one life of a topic from the next, so that offsets which began anew
are never taken for old ones. A user normally has one entry; partitions added later bring a second.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from hashlib import blake2b

from shared.core.errors import StateDamaged
from shared.core.items_codec import pack_item, packed_size, unpack_items

FORMAT = 1
EVENT_IDS = 16
"""How many of a user's last event ids are remembered."""
TOKEN_BYTES = 8
NO_TOKEN = b""
"""The token of a user who has no value yet."""

_TOKEN = struct.Struct("<II")
_HEAD = struct.Struct("<BHBBHHQqI")
_ENTRY = struct.Struct("<IIQ")
_BODY = TOKEN_BYTES + _HEAD.size

Applied = dict[int, tuple[int, int]]
"""partition -> (incarnation, next offset)"""


@dataclass(slots=True)
class UserState:
    """The state of one user. ``hidden`` holds half floats as bytes; ``recent`` is packed, see items_codec."""

    token: bytes = NO_TOKEN
    hidden: bytes = b""
    fingerprint: int = 0
    last_ts: int = 0
    events: int = 0
    applied: Applied = field(default_factory=dict)
    event_ids: bytes = b""
    recent: bytes = b""
    recent_count: int = 0

    def recent_items(self) -> list[str]:
        """The recent item ids, oldest first."""
        return unpack_items(self.recent)

    def has_applied(self, partition: int, incarnation: int, offset: int) -> bool:
        """Whether the event at this place is already in the state."""
        entry = self.applied.get(partition)
        return entry is not None and entry[0] == incarnation and offset < entry[1]

    def mark_applied(self, partition: int, incarnation: int, next_offset: int) -> None:
        """Remember that all events of this partition below ``next_offset`` are accounted for."""
        self.applied[partition] = (incarnation, next_offset)

    def remember_event_id(self, event_id: str) -> bool:
        """False where the id is among the last 16; else True, and it is from now on."""
        digest = blake2b(event_id.encode(), digest_size=8).digest()
        known = self.event_ids
        if digest in known and any(known[i : i + 8] == digest for i in range(0, len(known), 8)):
            return False
        self.event_ids = (known + digest)[-8 * EVENT_IDS :]
        return True

    def push_item(self, item_id: str, limit: int) -> None:
        """Append an item to the recent ones, dropping the oldest beyond ``limit``."""
        self.recent += pack_item(item_id)
        self.recent_count += 1
        while self.recent_count > limit:
            self.recent = self.recent[packed_size(self.recent, 0) :]
            self.recent_count -= 1

    def forget(self) -> None:
        """Drop all that is known of the user; what was applied stays, so that no old event comes back."""
        self.hidden = self.event_ids = self.recent = b""
        self.fingerprint = self.last_ts = self.events = self.recent_count = 0


def encode_state(state: UserState) -> bytes:
    """The value to store; its token is new, made from the token in ``state``."""
    applied = state.applied
    body = b"".join(
        (
            _HEAD.pack(
                FORMAT,
                len(applied),
                state.recent_count,
                len(state.event_ids) // 8,
                len(state.hidden),
                len(state.recent),
                state.fingerprint,
                state.last_ts,
                state.events,
            ),
            state.hidden,
            b"".join([_ENTRY.pack(partition, *entry) for partition, entry in applied.items()]),
            state.event_ids,
            state.recent,
        )
    )
    counter = (int.from_bytes(state.token[:4], "little") + 1) & 0xFFFFFFFF
    return _TOKEN.pack(counter, zlib.crc32(body)) + body


def decode_state(value: bytes | None) -> UserState:
    """The state in a stored value; an empty one for None. Raises StateDamaged for anything else that is no state."""
    if value is None:
        return UserState()
    if len(value) < _BODY:
        raise StateDamaged(f"{len(value)} bytes are too few for a user state")
    if zlib.crc32(memoryview(value)[TOKEN_BYTES:]) != int.from_bytes(value[4:8], "little"):
        raise StateDamaged("the checksum does not match")
    version, entries, items, ids, hidden_size, recent_size, fingerprint, last_ts, events = _HEAD.unpack_from(value, 8)
    if version != FORMAT:
        raise StateDamaged(f"format version {version} is not {FORMAT}")
    ends = _BODY + hidden_size
    ids_at = ends + entries * _ENTRY.size
    recent_at = ids_at + 8 * ids
    if recent_at + recent_size != len(value):
        raise StateDamaged(f"{len(value)} bytes do not hold what the head announces")
    if entries == 1:
        partition, incarnation, offset = _ENTRY.unpack_from(value, ends)
        applied: Applied = {partition: (incarnation, offset)}
    else:
        applied = {p: (i, o) for p, i, o in _ENTRY.iter_unpack(value[ends:ids_at])}
    return UserState(
        value[:TOKEN_BYTES], value[_BODY:ends], fingerprint, last_ts, events,
        applied, value[ids_at:recent_at], value[recent_at:], items,
    )  # fmt: skip


def token_of(value: bytes | None) -> bytes:
    """The token of a stored value, damaged or not, so that it can be replaced."""
    return NO_TOKEN if value is None else value[:TOKEN_BYTES]
