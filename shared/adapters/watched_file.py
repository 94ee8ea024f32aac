"""A text file that a setting names and that may change while we run: what it holds, and whether it changed."""

from __future__ import annotations

import os

from shared.adapters.settings_base import read_secret


class WatchedFile:
    """Opened anew for each reading, so that a link that was turned (Kubernetes' secrets) is followed."""

    def __init__(self, path: str, setting: str) -> None:
        self._path = path
        self._setting = setting

    def stamp(self) -> tuple[int, ...]:
        """Changes with the content; of a link, what it points to. Empty where there is no file."""
        try:
            found = os.stat(self._path)
        except OSError:
            return ()
        return (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)

    def read(self) -> str:
        """The text. Raises SettingsInvalid."""
        return read_secret(self._path, self._setting)
