"""Servers that only the contract suites use."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from shared.adapters.settings import RedisSettings
from tests import servers
from tests.redis_cluster import PASSWORD, LocalRedisCluster
from tests.secure_redis import SecureRedis


@pytest.fixture
def acl_redis_settings(secure_redis: SecureRedis) -> RedisSettings:
    """As the user of deploy/SECURITY.md, over TLS; keys of this test alone, below the prefix that it may use."""
    return secure_redis.settings(redis_prefix=f"dw:{uuid.uuid4().hex[:8]}:")


@pytest.fixture(scope="session")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRedisCluster]:
    if not LocalRedisCluster.possible():
        servers.missing("no redis-server and redis-cli: install redis")
    cluster = LocalRedisCluster(tmp_path_factory.mktemp("cluster"))
    cluster.start()
    cluster.with_user()
    yield cluster
    cluster.stop()


@pytest.fixture
def cluster_redis_settings(redis_cluster: LocalRedisCluster) -> RedisSettings:
    """Six servers, as the user of deploy/SECURITY.md; keys of this test alone."""
    return redis_cluster.settings(
        redis_prefix=f"dw:{uuid.uuid4().hex[:8]}:", redis_username="driftwood", redis_password=PASSWORD
    )
