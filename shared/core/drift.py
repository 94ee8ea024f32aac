"""When does the model in service no longer suit what people do? Falls of its hits, found per model version.

Each outcome is a bit: was the next action among the first 20 of the ranking held? A version's bits go through ADWIN
(hit_track.py). A rise, or the slow loss of a little, trains nobody; a fall is remembered by the level before it, until
that level is back: under the same version, or under its successors. While it is not, there is an alarm,

    at once where the version has had a minimum of events and no alarm was within the cool-down, else when that is so;
    and again after each cool-down, twice as long each time: a model trained on too little of the new is not the last.

After MAX_REPEATS the lower level is taken for what can be had.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from shared.core.engagement import CUTOFF, Counted, EngagementBatch
from shared.core.errors import StateDamaged
from shared.core.hit_track import CHECK_EVERY, StoredTrack, Track
from shared.core.rollback import Level, p_lower

TRENDING = "trending"
"""Track of the strategy that serves without a model."""
MAX_TRACKS = 4
MAX_REPEATS = 5
SIGNIFICANT = 0.01
"""Probability of a level so low by chance, at most, for it to count as not recovered."""


@dataclass(frozen=True, slots=True)
class DriftRules:
    """The settings. least_events: of a version before it can alarm; cooldown_s: between two alarms; delta: ADWIN's;
    least_fall: share of the level before that must be lost, since a training is not worth less."""

    least_events: int = 1000
    cooldown_s: float = 600.0
    delta: float = 0.001
    least_fall: float = 0.05


class Alarm(msgspec.Struct, frozen=True):
    """What was seen. Rates are hits among the first 20 per scored event."""

    version: str
    before: float
    after: float
    since: int
    """When the fall began: ms since the epoch, by the time of the events."""
    events: int
    """Events behind ``after``."""
    before_events: int
    at: int
    """ms since the epoch, by the clock of the one who watches."""
    repeat: int
    """0: a new fall; n: its n-th repetition, since the level did not come back."""


class _Fall(msgspec.Struct, array_like=True):
    """A fall that is not made good yet. hits, events: the level before it; alarms: how many it has had."""

    hits: int
    events: int
    since: int
    alarms: int = 0


class StoredDrift(msgspec.Struct, array_like=True):
    """The monitor as it is stored."""

    format: int
    tracks: dict[str, StoredTrack]
    places: list[tuple[str, str, int, int, int]]
    """(model version, strategy, partition, incarnation, next offset): see shared.core.engagement.Counted"""
    fall: _Fall | None
    quiet_until: int
    last_alarm: Alarm | None


FORMAT = 1
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(StoredDrift)


class DriftMonitor:
    """Fed with engagement batches; gives alarms. What ``encode`` gives goes on elsewhere as if nothing had been.

    champion: the version in service, whose bits alone give alarms; None: none is.
    """

    def __init__(self, rules: DriftRules, value: bytes | None = None) -> None:
        """Raises StateDamaged where ``value`` is nothing that ``encode`` gave."""
        self.rules = rules
        self.champion: str | None = None
        stored = StoredDrift(FORMAT, {}, [], None, 0, None) if value is None else _decoded(value)
        self._tracks = {version: Track(rules.delta, track) for version, track in stored.tracks.items()}
        self._counted = Counted({(v, s, p, i): to for v, s, p, i, to in stored.places})
        self._fall = stored.fall
        self._quiet_until = stored.quiet_until
        self.last_alarm = stored.last_alarm

    def encode(self) -> bytes:
        """Everything, as one value of at most about 200 KB."""
        tracks = {version: track.stored() for version, track in self._tracks.items()}
        places = [(*key, to) for key, to in self._counted.places.items()]
        return _encoder.encode(StoredDrift(FORMAT, tracks, places, self._fall, self._quiet_until, self.last_alarm))

    def take(self, batch: EngagementBatch, now_ms: int) -> tuple[EngagementBatch | None, Alarm | None]:
        """What is new in the batch (None: all was counted before), and the alarm that it gave.

        now_ms: the clock of the cool-down, ms since the epoch.
        """
        new = self._counted.take(batch)
        if new is None:
            return None, None
        version = TRENDING if new.strategy == TRENDING else new.model_version
        track, alarm = self.track(version), None
        ts = min(new.ts, now_ms)  # events may be ahead of the clock, and a fall does not begin tomorrow
        for rank in new.ranks:
            alarm = self._add(version, track, 0 < rank <= CUTOFF, ts, now_ms) or alarm
        return new, alarm

    def track(self, version: str) -> Track:
        """The bits of a version, made where there are none; the one used longest ago makes room."""
        track = self._tracks.pop(version, None) or Track(self.rules.delta)
        self._tracks[version] = track
        while len(self._tracks) > MAX_TRACKS:
            self._forget(next(name for name in self._tracks if name not in (self.champion, version)))
        return track

    def quiet(self, now_ms: int, seconds: float) -> None:
        """No alarm for so long, whatever comes."""
        self._quiet_until = max(self._quiet_until, now_ms + round(1000 * seconds))

    def _forget(self, version: str) -> None:
        del self._tracks[version]
        places = self._counted.places
        for key in [key for key in places if version == (TRENDING if key[1] == TRENDING else key[0])]:
            del places[key]

    def _add(self, version: str, track: Track, hit: bool, ts: int, now_ms: int) -> Alarm | None:
        cut = track.add(hit, ts)
        if version != self.champion:
            return None
        if cut is not None and cut[1].rate < cut[0].rate:
            self._remember(cut[0], track.began_at())
        elif track.total % CHECK_EVERY:
            return None
        return self._judge(version, track, now_ms)

    def _remember(self, before: Level, since: int) -> None:
        """A level was left for a lower one. A further fall is as urgent as the first, and tells since when; the level
        to come back to is still the one before the first."""
        fall = self._fall
        if fall is None or before.rate > fall.hits / fall.events:
            self._fall = _Fall(before.hits, before.events, since)
            return
        fall.since = since
        if fall.alarms and self.last_alarm is not None:
            fall.alarms = 0
            self._quiet_until = min(self._quiet_until, self.last_alarm.at + self._pause_ms(0))

    def _judge(self, version: str, track: Track, now_ms: int) -> Alarm | None:
        fall, level = self._fall, track.window()
        if fall is None or track.total < self.rules.least_events:
            return None
        before = Level(fall.hits, fall.events)
        lower = p_lower(level, before) < SIGNIFICANT
        if not lower and level.events >= self.rules.least_events:
            self._fall = None
        elif lower and level.rate <= (1 - self.rules.least_fall) * before.rate and now_ms >= self._quiet_until:
            return self._alarm(version, fall, level, now_ms)
        return None

    def _alarm(self, version: str, fall: _Fall, level: Level, now_ms: int) -> Alarm:
        before = fall.hits / fall.events
        alarm = Alarm(version, before, level.rate, fall.since, level.events, fall.events, now_ms, repeat=fall.alarms)
        self._quiet_until = now_ms + self._pause_ms(fall.alarms)
        fall.alarms += 1
        if fall.alarms > MAX_REPEATS:
            self._fall = None
        self.last_alarm = alarm
        return alarm

    def _pause_ms(self, alarms: int) -> int:
        """The cool-down after the first alarm, twice as long after each further one."""
        return round(1000 * self.rules.cooldown_s) << alarms


def _decoded(value: bytes) -> StoredDrift:
    try:
        stored = _decoder.decode(value)
    except msgspec.DecodeError as error:
        raise StateDamaged(f"the state of drift detection cannot be read: {error}") from error
    if stored.format != FORMAT:
        raise StateDamaged(f"the state of drift detection has format {stored.format}, known is {FORMAT}")
    return stored
