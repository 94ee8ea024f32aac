"""The session log's Parquet: batches into bytes, forgotten users out of frames."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterable, Mapping

import polars as pl

from shared.core.log_files import LogFile
from shared.core.session_log_port import Forgotten, LogBatch

SCHEMA: dict[str, pl.DataType] = {
    "user_id": pl.String(),
    "item_id": pl.String(),
    "event_type": pl.String(),
    "ts": pl.Int64(),
    "session_id": pl.String(),
    "event_id": pl.String(),
    "recommendation_id": pl.String(),
    "partition": pl.Int32(),
    "offset": pl.Int64(),
}
UNREADABLE = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError)
"""What polars raises for a file that is none, or no longer."""
_ALL = 2**63 - 1


class Wishes:
    """What users asked to be forgotten, by (partition, incarnation)."""

    def __init__(self, forgotten: Iterable[Forgotten]) -> None:
        self._below: dict[tuple[int, int], dict[str, int]] = {}
        for wish in forgotten:
            for cut in wish.cuts:
                users = self._below.setdefault((cut.partition, cut.incarnation), {})
                end = _ALL if cut.end is None else cut.end
                users[wish.user_id] = max(end, users.get(wish.user_id, 0))

    def below(self, life: tuple[int, int]) -> Mapping[str, int]:
        """user -> the offset below which all events of that user are forgotten."""
        return self._below.get(life, {})

    def keep(self, life: tuple[int, int]) -> pl.Expr | None:
        """Which rows stay, by columns user_id and offset; None: all do."""
        users = self.below(life)
        if not users:
            return None
        below = pl.col("user_id").replace_strict(list(users), list(users.values()), default=-1, return_dtype=pl.Int64())
        return pl.col("offset") >= below


def concerns(wish: Forgotten, file: LogFile) -> bool:
    """Whether a file may hold events that the wish cuts off."""
    return any(
        (cut.partition, cut.incarnation) == file.life and (cut.end is None or file.first < cut.end) for cut in wish.cuts
    )


def frame_of(batch: LogBatch, wishes: Wishes) -> pl.DataFrame:
    """The batch's events without those of forgotten users, by SCHEMA."""
    below = wishes.below((batch.partition, batch.incarnation))
    rows = [
        (event, offset)
        for event, offset in zip(batch.events, batch.offsets, strict=True)
        if offset >= below.get(event.user_id, 0)
    ]
    names = [name for name in SCHEMA if name not in ("partition", "offset")]
    columns: dict[str, list[object]] = {name: [getattr(event, name) for event, _ in rows] for name in names}
    columns["partition"] = [batch.partition] * len(rows)
    columns["offset"] = [offset for _, offset in rows]
    return pl.DataFrame(columns, schema=SCHEMA)


def encode_frame(frame: pl.DataFrame) -> bytes:
    """Parquet. The same rows give the same bytes."""
    buffer = io.BytesIO()
    frame.write_parquet(buffer, compression="zstd")
    return buffer.getvalue()


def empty_frame() -> pl.DataFrame:
    """No rows."""
    return pl.DataFrame(schema=SCHEMA)


def named(day: str, life: tuple[int, int], first: int, after: int, content: bytes) -> LogFile:
    """The file that this content makes."""
    return LogFile(day, *life, first, after, zlib.crc32(content), len(content))
