"""What the recommender asks of the broker about its topics, and may ask from any of its threads."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Protocol


class TopicAdmin(Protocol):
    """Describes topics."""

    def describe(self, topic: str) -> tuple[str, list[int]]:
        """(the name of the topic's present life, its partitions). Raises TopicMissing, Unavailable."""

    def close(self) -> None:
        """Close the connection."""


class OffsetReader(Protocol):
    """Tells where topics end."""

    def end_offsets(self, topic: str, partitions: Sequence[int] | None = None) -> dict[int, int]:
        """partition -> the next offset to be written, of all of ``partitions``; None: of those known. Raises
        Unavailable."""

    def close(self) -> None:
        """Close the connection."""


class Topics:
    """One connection of each kind, used by one thread at a time."""

    def __init__(self, admin: TopicAdmin, offsets: OffsetReader) -> None:
        self._admin = admin
        self._offsets = offsets
        self._lock = threading.Lock()

    def describe(self, topic: str) -> tuple[str, list[int]]:
        """See TopicAdmin."""
        with self._lock:
            return self._admin.describe(topic)

    def end_offsets(self, topic: str, partitions: Sequence[int] | None = None) -> dict[int, int]:
        """See OffsetReader."""
        with self._lock:
            return self._offsets.end_offsets(topic, partitions)

    def close(self) -> None:
        """Close both connections."""
        with self._lock:
            self._admin.close()
            self._offsets.close()
