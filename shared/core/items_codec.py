"""Recent items as a packed run of bytes: short, and appended to without being decoded.

An item is a head byte and its payload:

    0..199      an id of head + 1 bytes of UTF-8
    200         the next byte plus one is the length, then the id (201 to 256 bytes)
    202..208    a decimal number without leading zeros, in head - 200 bytes, little-endian

Nine-digit ids thus take five bytes instead of ten: 32 of them fit beside a hidden state in half a kilobyte.
"""

from __future__ import annotations

from collections.abc import Iterable

from shared.core.errors import StateDamaged

_LONG = 200
_NUMERIC_MIN = 2  # a one-byte number has at most three digits: as text it is as short


def pack_item(item_id: str) -> bytes:
    """The packed form of one id (1 to 256 bytes of UTF-8)."""
    if item_id.isascii() and item_id.isdigit() and item_id[0] != "0":
        number = int(item_id) if len(item_id) <= 19 else 1 << 64
        size = max((number.bit_length() + 7) // 8, _NUMERIC_MIN)
        if number < 1 << 64 and size < len(item_id):
            return bytes((_LONG + size,)) + number.to_bytes(size, "little")
    raw = item_id.encode()
    if len(raw) <= _LONG:
        return bytes((len(raw) - 1,)) + raw
    return bytes((_LONG, len(raw) - 1)) + raw


def packed_size(blob: bytes, at: int) -> int:
    """Bytes that the item starting at ``at`` takes, head included."""
    head = blob[at]
    if head < _LONG:
        return head + 2
    if head == _LONG:
        return blob[at + 1] + 3
    return head - _LONG + 1


def unpack_items(blob: bytes) -> list[str]:
    """All ids of a packed run, in order. Raises StateDamaged where the run breaks off."""
    items: list[str] = []
    at, end = 0, len(blob)
    try:
        while at < end:
            stop = at + packed_size(blob, at)
            if stop > end:
                raise StateDamaged(f"recent items break off at byte {at} of {end}")
            head = blob[at]
            if head > _LONG:
                items.append(str(int.from_bytes(blob[at + 1 : stop], "little")))
            else:
                items.append(blob[at + 1 + (head == _LONG) : stop].decode())
            at = stop
    except (IndexError, UnicodeDecodeError) as error:
        raise StateDamaged(f"recent items cannot be read at byte {at}: {error}") from error
    return items


def pack_items(items: Iterable[str]) -> bytes:
    """The packed run of several ids."""
    return b"".join(map(pack_item, items))
