"""Structured logs: one JSON object a line, or text for a person."""

from __future__ import annotations

import json
import logging
import sys
import time

from shared.adapters.settings import LoggingSettings

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


def _extra(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


class TextFormatter(logging.Formatter):
    """For a person: the message, then what was passed as ``extra``."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """One line, and a traceback if there is one."""
        head, newline, rest = super().format(record).partition("\n")
        return head + "".join(f" {name}={value}" for name, value in _extra(record).items()) + newline + rest


class JsonFormatter(logging.Formatter):
    """time, level, logger, message, and whatever was passed as ``extra`` (topic, partition, offset…)."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        entry: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry.update(_extra(record))
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str, ensure_ascii=False)


def configure_logging(settings: LoggingSettings) -> None:
    """Send all logs to standard error in the format of the settings."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else TextFormatter())
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=True)
    # kafka-python tells of every failed attempt to connect as an ERROR; what matters of it, our own logs say.
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
