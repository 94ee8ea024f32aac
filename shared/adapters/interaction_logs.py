"""Interaction logs from files: CSV, TSV and Parquet, in our columns, in yours, or in a known layout."""

from __future__ import annotations

import gzip
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from glob import glob
from pathlib import Path

import polars as pl

from shared.adapters.log_formats import FAMILIES, FORMATS, LogFormat, by_columns, by_first_line
from shared.core.errors import LogUnreadable

log = logging.getLogger(__name__)

COLUMNS = ("session_id", "user_id", "item_id", "ts", "event_type")
MAX_ID_BYTES = 256
_UNITS = ((1e11, 1000.0), (1e14, 1.0), (1e17, 1e-3), (float("inf"), 1e-6))
"""A median time below the first is in s, ms, us, ns: factor to ms. 1e11 s is the year 5138, 1e11 ms is 1973."""


@dataclass(frozen=True, slots=True)
class InteractionLog:
    """What a log held. ``events``: session_id (str, null where the log has none), user_id (str), item_id (str), ts
    (int64, ms since the epoch), event_type (str); sorted by ts, equal times in the order of the file."""

    events: pl.DataFrame
    format: str
    rows: int
    rejected: dict[str, int]
    """reason -> rows left out for it"""

    def summary(self) -> str:
        """One line for people."""
        text = f"{self.format}: {self.events.height:,} events of {self.rows:,} rows"
        if self.rejected:
            text += "; left out: " + ", ".join(f"{count:,} with {why}" for why, count in self.rejected.items())
        return text


def read_log(
    path: str | Path,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> pl.DataFrame:
    """The events of a log, see InteractionLog.events. Rows that cannot be used are counted in a warning."""
    found = load_log(path, format, columns)
    if found.rejected:
        log.warning("%s: %s", path, found.summary())
    return found.events


def load_log(
    path: str | Path,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> InteractionLog:
    """Read a log: a file (text may be gzipped), a pattern, or a folder of Parquet files.

    format: a name in FORMATS or FAMILIES; None: told by the columns. columns: our column -> the file's, over the
    format's own (ours: COLUMNS; ``ts`` may be ISO 8601, or a number whose unit is told by its size). A user who is not
    named is the session; where only some are named, that user is "session:<id>", which no user is called. Raises
    LogUnreadable, naming file and column.
    """
    name = str(path)
    try:
        raw, layout = _scan(name, format, dict(columns or {}))
        frame = _normalise(raw, layout).collect(engine="streaming")
    except LogUnreadable:
        raise
    except (pl.exceptions.PolarsError, OSError, UnicodeError) as error:
        raise LogUnreadable(f"{name}: {_first_line(error)}") from error
    if frame.is_empty():
        raise LogUnreadable(f"{name}: no events")
    counts = frame["wrong"].drop_nulls().value_counts().sort("wrong")
    rejected = {str(why): int(count) for why, count in counts.iter_rows()}
    if frame.height == sum(rejected.values()):
        raise LogUnreadable(f"{name}: no usable row in {frame.height:,}: {rejected}")
    events = frame.filter(pl.col("wrong").is_null()).drop("wrong").sort("ts", maintain_order=True)
    return InteractionLog(events, layout.name, frame.height, rejected)


def _scan(path: str, format_name: str | None, columns: dict[str, str]) -> tuple[pl.LazyFrame, LogFormat]:
    """The file as it is, and its layout."""
    unknown = set(columns) - set(COLUMNS)
    if unknown:
        raise LogUnreadable(
            f"{path}: no such column of ours: {', '.join(sorted(unknown))} (ours: {', '.join(COLUMNS)})"
        )
    first = _first_file(path)
    among = _among(path, format_name)
    if _is_parquet(first):
        raw = pl.scan_parquet(_pattern(path))
        names = raw.collect_schema().names()
        return raw, _layout(path, names, among, columns)
    line = _head(first)
    headless = by_first_line(line, among)
    if headless is None and all(layout.header for layout in among):
        headless = among[0]  # named by the caller: a bad first line does not make it another layout
    if headless and (format_name or not columns):
        return _scan_text(path, headless), replace(headless, columns={**headless.columns, **columns})
    separator = _separator(line)
    names = [field.strip('"\ufeff') for field in line.strip("\r\n").split(separator)]
    layout = replace(_layout(path, names, among, columns), separator=separator)
    return _scan_text(path, layout), layout


def _among(path: str, format_name: str | None) -> list[LogFormat]:
    if format_name is None:
        return list(FORMATS.values())
    names = FAMILIES.get(format_name) or ((format_name,) if format_name in FORMATS else ())
    if not names:
        raise LogUnreadable(
            f"{path}: unknown format {format_name!r}; known: {', '.join(sorted({*FAMILIES, *FORMATS}))}"
        )
    return [FORMATS[name] for name in names]


def _layout(path: str, names: Sequence[str], among: Sequence[LogFormat], columns: dict[str, str]) -> LogFormat:
    """The known layout that fits, with the caller's columns over it; or the caller's columns alone."""
    known = by_columns([*names, *(f.columns[c] for f in among for c in columns if c in f.columns)], among)
    base = known or LogFormat("custom", {name: name for name in COLUMNS})
    mapped = {ours: theirs for ours, theirs in base.columns.items() if theirs in names}
    unit = "auto" if "ts" in columns else base.time_unit
    layout = replace(base, columns={**mapped, **columns}, time_unit=unit)
    if "offset" in layout.columns and "ts" in columns:
        layout = replace(layout, columns={k: v for k, v in layout.columns.items() if k != "offset"})
    listed = ", ".join(names)
    for ours, theirs in columns.items():
        if theirs not in names:
            raise LogUnreadable(f"{path}: no column {theirs!r} (for {ours}); columns: {listed}")
    for ours in ("item_id", "ts"):
        if ours not in layout.columns:
            raise LogUnreadable(f"{path}: which column is {ours}? Columns: {listed}; name it with --column {ours}=...")
    if not {"session_id", "user_id"} & set(layout.columns):
        raise LogUnreadable(f"{path}: which column is user_id or session_id? Columns: {listed}; name it with --column")
    return layout


def _scan_text(path: str, layout: LogFormat) -> pl.LazyFrame:
    """Every field as text: what is no number is a bad row, not the end of the run."""
    single = len(layout.separator) == 1
    raw = pl.scan_csv(
        _pattern(path),
        separator=layout.separator if single else "\x1f",
        has_header=layout.header is None,
        infer_schema=False,
        encoding="utf8-lossy",
        truncate_ragged_lines=True,
        quote_char='"' if layout.header is None else None,
        new_columns=list(layout.header) if layout.header and single else None,
    )
    if single or layout.header is None:
        return raw
    parts = pl.first().str.split_exact(layout.separator, len(layout.header) - 1)
    return raw.select(parts.struct.rename_fields(list(layout.header)).alias("parts")).unnest("parts")


def _normalise(raw: pl.LazyFrame, layout: LogFormat) -> pl.LazyFrame:
    """Our columns, and ``wrong``: why a row cannot be used."""
    schema = raw.collect_schema()

    def text(ours: str) -> pl.Expr:
        column = layout.columns.get(ours)
        if column is None:
            return pl.lit(None, dtype=pl.String).alias(ours)
        raw_id = pl.col(column)
        if schema[column].is_float():  # whole numbers that were given room for a null, as pandas does
            raw_id = pl.when(raw_id == raw_id.floor()).then(raw_id.cast(pl.Int64, strict=False))
        cleaned = raw_id.cast(pl.String).str.strip_chars()
        missing = cleaned.is_in(["", "NA", "null"]) if ours in ("user_id", "session_id") else cleaned == ""
        return pl.when(missing).then(None).otherwise(cleaned).alias(ours)

    rows = raw.select(
        text("session_id"), text("user_id"), text("item_id"), _time(raw, layout, schema), text("event_type")
    )
    some_named = bool(rows.select(pl.col("user_id").is_not_null().any()).collect(engine="streaming").item())
    session = pl.col("session_id")
    filled = rows.with_columns(
        pl.coalesce("user_id", "session:" + session if some_named else session).alias("user_id"),
        pl.col("event_type").fill_null(layout.event_type),
    )
    return filled.with_columns(_wrong().alias("wrong"))


def _wrong() -> pl.Expr:
    reasons = [
        (pl.col("item_id").is_null(), "no item_id"),
        (pl.col("user_id").is_null(), "neither user_id nor session_id"),
        (pl.col("ts").is_null() | (pl.col("ts") <= 0), "a timestamp that cannot be read"),
    ]
    for name in ("item_id", "user_id"):
        reasons.append((pl.col(name).str.len_bytes() > MAX_ID_BYTES, f"{name} over {MAX_ID_BYTES} bytes"))
        reasons.append((pl.col(name).str.contains("\ufffd", literal=True), f"{name} that is not UTF-8"))
    return pl.coalesce([pl.when(wrong).then(pl.lit(reason)) for wrong, reason in reasons])


def _time(raw: pl.LazyFrame, layout: LogFormat, schema: pl.Schema) -> pl.Expr:
    """``ts``: int64 ms; null where it cannot be read."""
    name = layout.columns["ts"]
    kind, column = schema[name], pl.col(name)
    if kind in (pl.Date, pl.Datetime):
        return column.cast(pl.Datetime("ms")).dt.epoch("ms").alias("ts")
    if layout.time_unit == "day+ms":
        day = column.cast(pl.String).str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("ms")).dt.epoch("ms")
        return (day + pl.col(layout.columns["offset"]).cast(pl.Int64, strict=False)).alias("ts")
    number = column.cast(pl.Float64, strict=False)
    if layout.time_unit in ("s", "ms"):
        factor = 1000.0 if layout.time_unit == "s" else 1.0
        return (number * factor).cast(pl.Int64, strict=False).alias("ts")
    median = raw.select(number.median()).collect(engine="streaming").item()
    if median is not None:
        factor = next(factor for below, factor in _UNITS if median < below)
        return (number * factor).cast(pl.Int64, strict=False).alias("ts")
    iso = column.str.strip_chars().str.to_datetime(time_unit="ms", time_zone="UTC", strict=False)
    return iso.dt.epoch("ms").alias("ts")


def _pattern(path: str) -> str:
    return f"{path.rstrip('/')}/**/*.parquet" if Path(path).is_dir() else path


def _first_file(path: str) -> Path:
    files = sorted(glob(_pattern(path), recursive=True))
    if not files:
        raise LogUnreadable(f"{path}: no such file")
    return Path(files[0])


def _is_parquet(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PAR1"


def _head(path: Path) -> str:
    """The first line of a text file, gzipped or plain."""
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    with gzip.open(path) if zipped else path.open("rb") as file:
        content = file.read(65536)
    if not content:
        raise LogUnreadable(f"{path}: empty file")
    if b"\0" in content:
        raise LogUnreadable(f"{path}: neither text nor Parquet")
    return content.split(b"\n", 1)[0].decode("utf-8", "replace")


def _separator(line: str) -> str:
    """The most frequent of the usual ones in the header line."""
    return max((",", ";", "\t", "|"), key=line.count)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0] or type(error).__name__
