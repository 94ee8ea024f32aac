"""What the deciding retrainer remembers: one value, stored before anything is committed that it was told by."""

from __future__ import annotations

import msgspec

from shared.core.drift import Alarm, DriftMonitor, DriftRules
from shared.core.errors import StateDamaged
from shared.core.rollback import Level

FORMAT = 1


class Due(msgspec.Struct):
    """A training that is to be done. It stays due until one has ended, so a killed one is done again."""

    reason: str
    """"drift", "age" or "cold"."""
    since: int
    """ms since the epoch"""
    alarm: Alarm | None = None
    noted: bool = False
    """Whether the alarm is in the registry's journal."""


class Watch(msgspec.Struct):
    """A promotion under observation."""

    version: str
    back_to: str
    before_hits: int
    before_events: int
    from_bit: int
    """The number of the version's first bit that counts: see shared.core.hit_track."""
    at: int
    verdict: dict[str, float] | None = None
    """The numbers behind a decision to roll back: made, but maybe not carried out yet."""
    why: str = ""
    readable: bool = False
    """Whether its files were found to be whole."""

    @property
    def before(self) -> Level:
        """The old version's level just before."""
        return Level(self.before_hits, self.before_events)


class _Stored(msgspec.Struct):
    format: int
    drift: bytes
    champion: str | None
    due: Due | None
    watch: Watch | None
    failures: int
    not_before: int
    trained_at: int
    rollbacks: int


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Stored)


class Memory:
    """champion: the version that was last seen in service. Times are ms since the epoch."""

    def __init__(self, rules: DriftRules, value: bytes | None = None) -> None:
        """Raises StateDamaged where ``value`` is nothing that ``encode`` gave."""
        stored = _Stored(FORMAT, b"", None, None, None, 0, 0, 0, 0) if value is None else _decoded(value)
        self.monitor = DriftMonitor(rules, stored.drift or None)
        self.due = stored.due
        self.watch = stored.watch
        self.failures = stored.failures
        """Trainings in a row that broke."""
        self.not_before = stored.not_before
        """No training is begun before."""
        self.trained_at = stored.trained_at
        """When the last training ended; 0: never."""
        self.rollbacks = stored.rollbacks
        """In a row."""
        self.champion = stored.champion

    @property
    def champion(self) -> str | None:
        """None: none was seen yet."""
        return self.monitor.champion

    @champion.setter
    def champion(self, version: str | None) -> None:
        self.monitor.champion = version

    def encode(self) -> bytes:
        """One value, at most about 200 KB."""
        return _encoder.encode(
            _Stored(
                FORMAT,
                self.monitor.encode(),
                self.champion,
                self.due,
                self.watch,
                self.failures,
                self.not_before,
                self.trained_at,
                self.rollbacks,
            )
        )


def _decoded(value: bytes) -> _Stored:
    try:
        stored = _decoder.decode(value)
    except msgspec.DecodeError as error:
        raise StateDamaged(f"the retrainer's memory cannot be read: {error}") from error
    if stored.format != FORMAT:
        raise StateDamaged(f"the retrainer's memory has format {stored.format}, known is {FORMAT}")
    return stored
