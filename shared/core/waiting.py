"""Waiting while a system is away."""

from __future__ import annotations

import threading

from shared.core.errors import TopicMissing, TopicRecreated, Unavailable
from shared.core.ports import InteractionSource, Polled


def poll_without_records(source: InteractionSource, pause_s: float, stop: threading.Event) -> Polled:
    """Wait, polling meanwhile, so that the group does not take us for dead. What came and went is in the answer."""
    source.hold()
    try:
        return source.poll(pause_s, 1)
    except (Unavailable, TopicMissing, TopicRecreated):
        stop.wait(pause_s)
        return Polled()
    finally:
        source.release()
