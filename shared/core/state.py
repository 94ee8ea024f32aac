"""What is known of one user, and its one value in Redis.

Layout, little-endian, version 2:

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
    37  u16  bytes of dismissed items
    39  hidden state (IEEE half floats), applied-offset entries, event-id hashes (8 bytes each), recent items,
        dismissed items

Version 1, which is still read, had no dismissed items: its hidden state began at 37.

An applied-offset entry is (u32 partition, u32 incarnation, u64 next offset): events of that partition below the
offset are in the state. The incarnation tells one life of a topic from the next, so that offsets which began anew
are never taken for old ones. A user normally has one entry; partitions added later bring a second.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from hashlib import blake2b

from shared.core.dismissed import unpack_dismissed, with_dismissed
from shared.core.errors import StateDamaged
from shared.core.items_codec import pack_item, packed_size, unpack_items

FORMAT = 2
EVENT_IDS = 16
"""How many of a user's last event ids are remembered."""
TOKEN_BYTES = 8
NO_TOKEN = b""
"""The token of a user who has no value yet."""

_TOKEN = struct.Struct("<II")
_HEAD = struct.Struct("<BHBBHHQqIH")
_HEAD_1 = struct.Struct("<BHBBHHQqI")
_ENTRY = struct.Struct("<IIQ")
MOST_ENTRIES = 0xFFFF
"""Applied-offset entries that a value can hold."""

Applied = dict[int, tuple[int, int]]
"""partition -> (incarnation, next offset)"""


@dataclass(slots=True)
class UserState:
    """The state of one user. ``hidden``: half floats as bytes; ``recent``, ``dismissed``: packed, see their codecs."""

    token: bytes = NO_TOKEN
    hidden: bytes = b""
    fingerprint: int = 0
    last_ts: int = 0
    events: int = 0
    applied: Applied = field(default_factory=dict)
    event_ids: bytes = b""
    recent: bytes = b""
    recent_count: int = 0
    dismissed: bytes = b""

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

    def dismiss(self, item_id: str, until_s: int, now_s: int) -> None:
        """Do not offer the item before ``until_s``; drop what had run out at ``now_s`` (seconds since the epoch)."""
        self.dismissed = with_dismissed(self.dismissed, item_id, until_s, now_s)

    def dismissed_items(self) -> list[tuple[str, int]]:
        """(item id, seconds since the epoch up to which it is not offered). Raises StateDamaged."""
        return unpack_dismissed(self.dismissed) if self.dismissed else []

    def forget(self) -> None:
        """Drop all that is known of the user; what was applied stays, so that no old event comes back."""
        self.hidden = self.event_ids = self.recent = self.dismissed = b""
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
                len(state.dismissed),
            ),
            state.hidden,
            b"".join([_ENTRY.pack(partition, *entry) for partition, entry in applied.items()]),
            state.event_ids,
            state.recent,
            state.dismissed,
        )
    )
    counter = (int.from_bytes(state.token[:4], "little") + 1) & 0xFFFFFFFF
    return _TOKEN.pack(counter, zlib.crc32(body)) + body


def decode_state(value: bytes | None) -> UserState:
    """The state in a stored value; an empty one for None. Raises StateDamaged for anything else that is no state."""
    if value is None:
        return UserState()
    if len(value) < TOKEN_BYTES + _HEAD_1.size:
        raise StateDamaged(f"{len(value)} bytes are too few for a user state")
    if zlib.crc32(memoryview(value)[TOKEN_BYTES:]) != int.from_bytes(value[4:8], "little"):
        raise StateDamaged("the checksum does not match")
    version = value[8]
    if version == FORMAT and len(value) >= TOKEN_BYTES + _HEAD.size:
        _, entries, items, ids, hidden_size, recent_size, fingerprint, last_ts, events, dismissed_size = (
            _HEAD.unpack_from(value, TOKEN_BYTES)
        )
        body = TOKEN_BYTES + _HEAD.size
    elif version == 1:
        _, entries, items, ids, hidden_size, recent_size, fingerprint, last_ts, events = _HEAD_1.unpack_from(
            value, TOKEN_BYTES
        )
        body, dismissed_size = TOKEN_BYTES + _HEAD_1.size, 0
    else:
        raise StateDamaged(f"{len(value)} bytes of format version {version} are no state of versions 1 to {FORMAT}")
    ends = body + hidden_size
    ids_at = ends + entries * _ENTRY.size
    recent_at = ids_at + 8 * ids
    dismissed_at = recent_at + recent_size
    if dismissed_at + dismissed_size != len(value):
        raise StateDamaged(f"{len(value)} bytes do not hold what the head announces")
    if entries == 1:
        partition, incarnation, offset = _ENTRY.unpack_from(value, ends)
        applied: Applied = {partition: (incarnation, offset)}
    else:
        applied = {p: (i, o) for p, i, o in _ENTRY.iter_unpack(value[ends:ids_at])}
    return UserState(
        value[:TOKEN_BYTES], value[body:ends], fingerprint, last_ts, events,
        applied, value[ids_at:recent_at], value[recent_at:dismissed_at], items, value[dismissed_at:],
    )  # fmt: skip


def token_of(value: bytes | None) -> bytes:
    """The token of a stored value, damaged or not, so that it can be replaced."""
    return NO_TOKEN if value is None else value[:TOKEN_BYTES]
