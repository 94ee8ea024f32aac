"""What every Lease promises: the twin in memory and real Redis."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from shared.adapters.memory_lease import LeaseServer, MemoryLease
from shared.adapters.redis_lease import RedisLease
from shared.adapters.settings import RedisSettings
from shared.core.errors import Unavailable
from shared.core.lease_port import Lease
from tests.servers import until

Make = Callable[[float], Lease]


@pytest.fixture(params=["memory", "redis", "acl_redis", "cluster_redis"])
def lease(request: pytest.FixtureRequest) -> Iterator[Make]:
    """Makes one more would-be holder, with this time to live in seconds."""
    made: list[RedisLease] = []
    server = LeaseServer()

    def in_redis(ttl_s: float) -> Lease:
        made.append(RedisLease(request.getfixturevalue(f"{request.param}_settings"), "retrainer", ttl_s))
        return made[-1]

    yield (lambda ttl_s: MemoryLease(server, ttl_s)) if request.param == "memory" else in_redis
    for one in made:
        one.close()


def test_one_holds_it_and_only_the_holder_writes(lease: Make):
    first, second = lease(60), lease(60)
    assert first.read() is None
    assert not first.write(b"nobody holds it")
    assert first.hold()
    assert first.hold()
    assert not second.hold()
    assert first.write(b"\x00one")
    assert not second.write(b"two")
    assert second.read() == b"\x00one"


def test_let_go_it_is_free_at_once_and_the_value_stays(lease: Make):
    first, second = lease(60), lease(60)
    first.hold()
    first.write(b"one")
    second.release()  # not ours: nothing happens
    assert not second.hold()
    first.release()
    assert second.hold()
    assert (second.read(), first.write(b"late")) == (b"one", False)


def test_a_holder_that_is_silent_loses_it(lease: Make):
    first, second = lease(0.2), lease(60)
    first.hold()
    first.write(b"one")
    until(second.hold, 5, "the lease to be free")
    assert not first.hold()
    assert not first.write(b"late")
    assert second.read() == b"one"


def test_a_server_that_is_away():
    server = LeaseServer()
    server.available = False
    away = RedisSettings(redis_url="redis://127.0.0.1:1/0", redis_timeout_s=0.5)
    for lease in (MemoryLease(server, 1), RedisLease(away, "retrainer", 1)):
        for call in (lease.hold, lease.release, lease.read, lambda lease=lease: lease.write(b"")):
            with pytest.raises(Unavailable):
                call()
