"""Every error that Driftwood raises on purpose.

DriftwoodError
├── InvalidEvent        an interaction that cannot be read: goes to the dead-letter topic
├── StateDamaged        a Redis value that is not a user state
├── ModelDamaged        a published model whose files are missing, cut short or altered
├── NoSuchVersion       a model version that the registry does not hold
├── SettingsInvalid     a setting whose value cannot work, named
├── LogUnreadable       an interaction log (CSV, Parquet) that cannot be read, file and column named
├── TopicMissing        a topic that does not exist on the broker
├── TopicRecreated      offsets held in memory belong to a topic that was deleted and made again
└── Unavailable         a system that may come back: broker, Redis, registry; worth a retry
    ├── NotAllowed      it is there and refuses us: it takes somebody who gives the right
    └── TooLarge        a record of a size that the broker does not take
"""

from __future__ import annotations


class DriftwoodError(Exception):
    """Base of all errors below."""


class InvalidEvent(DriftwoodError):
    """An interaction that breaks the contract; ``field`` names the offender ("" for the whole value)."""

    def __init__(self, reason: str, field: str = "") -> None:
        super().__init__(f"{field}: {reason}" if field else reason)
        self.reason = reason
        self.field = field


class StateDamaged(DriftwoodError):
    """A stored value that does not decode to a user state."""


class ModelDamaged(DriftwoodError):
    """A model version that fails its checksums, its schema or its shapes."""


class NoSuchVersion(DriftwoodError):
    """A version that is not in the registry."""


class SettingsInvalid(DriftwoodError):
    """A setting with a value that cannot work."""


class LogUnreadable(DriftwoodError):
    """An interaction log that is missing, in an unknown format, or lacks a column."""


class TopicMissing(DriftwoodError):
    """A topic that the broker does not have."""


class TopicRecreated(DriftwoodError):
    """The topic behind the held offsets is gone; another with the same name stands in its place."""


class Unavailable(DriftwoodError):
    """A system that did not answer; the message names it and its address."""


class NotAllowed(Unavailable):
    """A system that answered that we may not; the message says who may not what."""


class TooLarge(Unavailable):
    """A record that is larger than the broker, or our own limit for it, takes."""
