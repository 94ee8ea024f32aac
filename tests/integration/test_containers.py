"""Kafka and Redis as docker-compose.yml hardens them: started a second time, and with what producers send."""

from __future__ import annotations

import contextlib

import pytest
import redis

from tests.containers import redis_container, usable
from tests.servers import redis_answers, until

_FOREIGN = "install -d -o 999 -g 999 -m 700 /data/appendonlydir-of-another && touch /data/root-made"
_ENTRY_POINT = "find /data ! -user 999 -exec chown 999 {} +"
"""What the entry point of redis:7-alpine does at each start."""


@pytest.mark.skipif(not usable("redis"), reason="no Docker engine with the image of Redis")
def test_redis_starts_again_and_has_what_it_had():
    with redis_container() as (container, url):
        with contextlib.closing(redis.Redis.from_url(url)) as client:
            client.set("kept", "whole")
        for command in (_FOREIGN, _ENTRY_POINT):
            code, said = container.exec(["sh", "-c", command])
            assert code == 0, said
        container.get_wrapped_container().restart()
        until(lambda: redis_answers(url), 60, "Redis is back")
        with contextlib.closing(redis.Redis.from_url(url)) as client:
            assert client.get("kept") == b"whole"
