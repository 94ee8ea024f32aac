"""The state store of the settings: on one Redis server, or on a Redis Cluster."""

from __future__ import annotations

from shared.adapters.redis_cluster import RedisClusterStateStore
from shared.adapters.redis_store import RedisStateStore
from shared.adapters.settings import RedisSettings


def state_store(settings: RedisSettings) -> RedisStateStore | RedisClusterStateStore:
    """Not connected yet. Raises SettingsInvalid."""
    return RedisClusterStateStore(settings) if settings.redis_cluster else RedisStateStore(settings)
