"""Single commands on keys of one name, on one Redis server or on the server of a Redis Cluster that has them."""

from __future__ import annotations

from shared.adapters.redis_client import RedisConnection
from shared.adapters.redis_cluster import ClusterConnection
from shared.adapters.settings import RedisSettings


class RedisCommands:
    """``key`` is the name with its prefix; keys that begin with it are all on one server."""

    def __init__(self, settings: RedisSettings, name: str) -> None:
        self.key = f"{settings.redis_prefix}{{{name}}}" if settings.redis_cluster else f"{settings.redis_prefix}{name}"
        self._cluster = ClusterConnection(settings) if settings.redis_cluster else None
        self._single = RedisConnection(settings) if not settings.redis_cluster else None

    def run(self, *command: str | bytes | int) -> object:
        """Raises Unavailable."""
        if self._cluster is not None:
            return self._cluster.run(self.key, *command)
        assert self._single is not None
        return self._single.run(*command)

    def close(self) -> None:
        """Give the connection back."""
        for connection in (self._cluster, self._single):
            if connection is not None:
                connection.close()
