"""Items that a user dismissed, as a packed run of bytes: for each, when it may be offered again, and the item.

An entry is a u32 (little-endian, seconds since the epoch) and the item as in items_codec.
"""

from __future__ import annotations

import struct

from shared.core.errors import StateDamaged
from shared.core.items_codec import pack_item, packed_size, unpack_items

MOST = 100
"""Dismissed items kept for a user; past it the one dismissed longest ago is offered again."""

_UNTIL = struct.Struct("<I")
_LATEST = 0xFFFFFFFF


def with_dismissed(blob: bytes, item_id: str, until_s: int, now_s: int) -> bytes:
    """The run with one item more (or later, if it was in it), without those that had run out at ``now_s``."""
    packed = pack_item(item_id)
    until = min(max(until_s, 0), _LATEST)
    kept = []
    for end, item in _entries(blob):
        if item == packed:
            until = max(until, end)
        elif end > now_s:
            kept.append(_UNTIL.pack(end) + item)
    kept.append(_UNTIL.pack(until) + packed)
    return b"".join(kept[-MOST:])


def unpack_dismissed(blob: bytes) -> list[tuple[str, int]]:
    """(item id, seconds since the epoch up to which it is not offered), in the order dismissed. Raises StateDamaged."""
    return [(unpack_items(item)[0], end) for end, item in _entries(blob)]


def _entries(blob: bytes) -> list[tuple[int, bytes]]:
    entries: list[tuple[int, bytes]] = []
    at = 0
    try:
        while at < len(blob):
            stop = at + 4 + packed_size(blob, at + 4)
            if stop > len(blob):
                raise StateDamaged(f"dismissed items break off at byte {at} of {len(blob)}")
            entries.append((_UNTIL.unpack_from(blob, at)[0], blob[at + 4 : stop]))
            at = stop
    except (IndexError, struct.error) as error:
        raise StateDamaged(f"dismissed items cannot be read at byte {at}: {error}") from error
    return entries
