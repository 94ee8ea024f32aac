"""API keys: several, each with a name and what it may do, read from a setting and from a file that may change.

The file has one key a line: ``NAME SCOPES KEY``, or only ``KEY``; empty lines, and those that begin with #, do not
count. SCOPES are comma-separated: read (rankings, models), write (interactions, forgetting), metrics. KEY is the key
itself, or ``sha256:`` and the hexadecimal SHA-256 of it, so that the file holds nothing that opens a door. What begins
like a hash and is none is refused: taken for a key, it would be one that everybody may read.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from shared.core.errors import SettingsInvalid

log = logging.getLogger(__name__)

READ, WRITE, METRICS = "read", "write", "metrics"
SCOPES = frozenset({READ, WRITE, METRICS})
_SETTING = "HTTP_API_KEYS_FILE"
_HASHED = re.compile(r"sha256:([0-9a-f]{64})", re.IGNORECASE)
_SHORT = 16
"""Fewer characters than that are said to be too few: keys are for machines, and may be long."""


class ApiKey(NamedTuple):
    """Who may do what. The key itself is not kept, only its SHA-256."""

    name: str
    scopes: frozenset[str]
    digest: bytes


class KeyRing:
    """The keys that count now. ``keys`` is replaced as a whole, so that readers need no lock."""

    def __init__(self, keys: Sequence[ApiKey], needed: bool) -> None:
        self.keys = tuple(keys)
        self.needed = needed
        """False: there are no keys, and everything is open."""

    def find(self, given: bytes) -> ApiKey | None:
        """The key that was given. All are compared, each in constant time: how long it takes tells nothing of them."""
        digest = hashlib.sha256(given).digest()
        found = None
        for key in self.keys:
            if hmac.compare_digest(digest, key.digest):
                found = key
        return found


def keys_of_setting(text: str) -> list[ApiKey]:
    """HTTP_API_KEYS: comma-separated, each with all scopes; "" holds none. Raises SettingsInvalid that shows no key."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if text and not parts:
        raise SettingsInvalid("HTTP_API_KEYS: it is blank; leave it unset where everything is to be open")
    keys = []
    for number, part in enumerate(parts, 1):
        if len(part.split()) > 1:
            raise SettingsInvalid(
                f"HTTP_API_KEYS: key {number} has white space in it: keys stand between commas here, and one a line in"
                " HTTP_API_KEYS_FILE"
            )
        keys.append(_key(f"setting-{number}", SCOPES, part, f"HTTP_API_KEYS: key {number}"))
    return keys


def keys_of_file(text: str, setting: str = _SETTING) -> list[ApiKey]:
    """See above. Raises SettingsInvalid that names the line, and never shows it: it may be a key."""
    keys: list[ApiKey] = []
    for number, line in enumerate(text.splitlines(), 1):
        parts = line.split()
        if not parts or parts[0].startswith("#"):
            continue
        if len(parts) not in (1, 3):
            raise SettingsInvalid(f"{setting}: line {number} has {len(parts)} words: NAME SCOPES KEY, or only KEY")
        name, scopes = (parts[0], frozenset(parts[1].split(","))) if len(parts) == 3 else (f"line-{number}", SCOPES)
        if not scopes <= SCOPES:
            raise SettingsInvalid(f"{setting}: line {number}: scopes are {', '.join(sorted(SCOPES))}, comma-separated")
        keys.append(_key(name, scopes, parts[-1], f"{setting}: line {number}"))
    if not keys:
        raise SettingsInvalid(f"{setting}: it holds no key")
    if len({key.digest for key in keys}) < len(keys):
        raise SettingsInvalid(f"{setting}: the same key stands there twice")
    return keys


def _key(name: str, scopes: frozenset[str], text: str, where: str) -> ApiKey:
    hashed = _HASHED.fullmatch(text)
    if not hashed and text.lower().startswith("sha256:"):
        raise SettingsInvalid(f"{where}: behind sha256: stand 64 hexadecimal digits")
    if not hashed and len(text) < _SHORT:
        log.warning("an API key has fewer than %d characters", _SHORT, extra={"key_name": name})
    digest = bytes.fromhex(hashed[1]) if hashed else hashlib.sha256(text.encode()).digest()
    return ApiKey(name, scopes, digest)


class KeyFile(Protocol):
    """Where the keys stand."""

    def stamp(self) -> tuple[int, ...]:
        """Another one when the content changed."""

    def read(self) -> str:
        """The text. Raises SettingsInvalid."""


class KeyFileWatch:
    """Reads the file anew when it changes, in a thread. A damaged one leaves the keys as they were, and is told of."""

    def __init__(
        self,
        ring: KeyRing,
        fixed: Sequence[ApiKey],
        file: KeyFile,
        on_look: Callable[[bool], None],
        every_s: float = 0.5,
    ) -> None:
        """fixed: keys that always count. on_look: told True after a good reading, False after a bad one."""
        self._ring = ring
        self._fixed = tuple(fixed)
        self._file = file
        self._on_look = on_look
        self._every_s = every_s
        self._seen: tuple[int, ...] | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="api-keys", daemon=True)
        self.problem: str | None = None

    def start(self) -> None:
        """Read the file now, then watch it. Raises SettingsInvalid for a bad one: nothing is open by mistake."""
        self._seen = self._file.stamp()
        self._read()
        self._thread.start()

    def stop(self) -> None:
        """Watch no more."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def look(self) -> None:
        """Read the file if it changed since the last look. Never raises SettingsInvalid: see ``problem``."""
        stamp = self._file.stamp()
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            self._read()
        except SettingsInvalid as error:
            self.problem = str(error)
            self._on_look(False)
            log.error("the API keys stay as they were: %s", error)

    def _read(self) -> None:
        keys = keys_of_file(self._file.read())
        self._ring.keys = (*self._fixed, *keys)
        self.problem = None
        self._on_look(True)
        log.info("API keys read", extra={"keys": [key.name for key in keys]})

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            self.look()
