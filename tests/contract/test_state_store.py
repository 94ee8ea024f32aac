"""What every StateStore promises: the twin in memory and real Redis, also as the user of deploy/SECURITY.md."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import redis

from shared.adapters.memory import MemoryStateStore
from shared.adapters.memory_cluster import MemoryClusterStateStore
from shared.adapters.redis_store import RedisStateStore
from shared.adapters.settings import RedisSettings
from shared.adapters.state_stores import state_store
from shared.core.errors import Unavailable
from shared.core.ports import StateStore, StateWrite, StoreMemory
from shared.core.progress import Progress, decode_mark, encode_progress
from shared.core.state import NO_TOKEN, UserState, decode_state, encode_state, token_of
from tests.servers import RedisServer, missing, redis_server_path, until


@pytest.fixture(params=["memory", "memory_cluster", "redis", "acl_redis", "cluster_redis"])
def store(request: pytest.FixtureRequest) -> Iterator[StateStore]:
    if request.param == "memory":
        yield MemoryStateStore()
    elif request.param == "memory_cluster":
        yield MemoryClusterStateStore(3)
    else:
        redis = state_store(request.getfixturevalue(f"{request.param}_settings"))
        yield redis
        redis.close()


def put(store: StateStore, user: str, state: UserState) -> bytes:
    value = encode_state(state)
    assert store.write([StateWrite(user, state.token, value)]) == [True]
    return value


def test_what_was_written_is_read_in_the_order_asked_for(store):
    values = {user: put(store, user, UserState(events=n)) for n, user in enumerate(["a", "ü/{}: \n", "c" * 256])}
    asked = ["c" * 256, "nobody", "a", "ü/{}: \n"]
    assert store.read(asked) == [values.get(user) for user in asked]
    assert store.read([]) == []


def test_a_write_needs_the_token_that_it_replaces(store):
    first = put(store, "u", UserState(events=1))
    newer = UserState(token=token_of(first), events=2)
    second = put(store, "u", newer)
    late = StateWrite("u", token_of(first), encode_state(UserState(token=token_of(first), events=9)))
    afresh = StateWrite("u", NO_TOKEN, encode_state(UserState(events=9)))
    other = StateWrite("v", NO_TOKEN, encode_state(UserState(events=3)))
    assert store.write([late, other, afresh]) == [False, True, False]
    assert store.read(["u"]) == [second]
    assert decode_state(store.read(["v"])[0]).events == 3


def test_a_write_for_a_vanished_value_is_refused(store):
    token = token_of(encode_state(UserState(events=1)))
    assert store.write([StateWrite("gone", token, encode_state(UserState(token=token)))]) == [False]
    assert store.read(["gone"]) == [None]


def test_thousands_in_one_call(store):
    users = [f"u{n}" for n in range(3000)]
    writes = [StateWrite(user, NO_TOKEN, encode_state(UserState(events=n))) for n, user in enumerate(users)]
    assert store.write(writes) == [True] * 3000
    assert [decode_state(value).events for value in store.read(users)] == list(range(3000))


def test_another_run_of_the_server_takes_no_writes(store):
    value = encode_state(UserState(events=1))
    assert store.write([StateWrite("u", NO_TOKEN, value)], store.server_id()) == [True]
    with pytest.raises(Unavailable, match="restarted"):
        store.write([StateWrite("v", NO_TOKEN, value)], "another run")
    with pytest.raises(Unavailable, match="restarted"):
        store.write_progress("t", {0: (NO_TOKEN, encode_progress(Progress("", 0, 0, 0, []), NO_TOKEN))}, "another run")
    assert store.read(["v"]) == [None]
    assert store.read_progress("t", [0]) == [None]


@pytest.fixture
def two_servers(tmp_path):
    if redis_server_path() is None:
        missing("no redis-server: install redis-server")
    servers = []
    for name in "ab":
        (tmp_path / name).mkdir()
        servers.append(RedisServer(tmp_path / name, fsync="everysec"))
        servers[-1].start()
    yield servers
    for server in servers:
        server.stop()


def emptied(client: redis.Redis, other: RedisServer) -> None:
    client.flushdb()


def replaced_by_a_replica_and_taken_back(client: redis.Redis, other: RedisServer) -> None:
    """The same process, with the data of another for a while: its run_id does not change."""
    client.replicaof("127.0.0.1", str(other.port))
    until(lambda: client.info("replication")["master_link_status"] == "up", 20, "it follows the other")
    client.replicaof("NO", "ONE")


@pytest.mark.parametrize("happens", [emptied, replaced_by_a_replica_and_taken_back])
def test_data_that_went_back_under_the_same_process_takes_no_writes(two_servers, happens):
    server, other = two_servers
    with contextlib.closing(RedisStateStore(RedisSettings(redis_url=server.url))) as store:
        known = store.server_id()
        value = encode_state(UserState(events=1))
        assert store.write([StateWrite("u", NO_TOKEN, value)], known) == [True]
        assert store.server_id() == known
        with contextlib.closing(redis.Redis(port=server.port)) as client:
            happens(client, other)
        with pytest.raises(Unavailable, match="emptied"):
            store.write([StateWrite("v", NO_TOKEN, value)], known)
        assert store.read(["u", "v"]) == [None, None]
        assert store.server_id() != known
        assert store.write([StateWrite("v", NO_TOKEN, value)], store.server_id()) == [True]


def test_progress_is_kept_by_topic_and_partition(store):
    assert store.read_progress("t", [0, 1]) == [None, None]
    zero, one = (encode_progress(Progress("life", 0, n, 0, []), NO_TOKEN) for n in (10, 11))
    two = encode_progress(Progress("life", 0, 12, 0, []), token_of(one))
    assert store.write_progress("t", {0: (NO_TOKEN, zero), 1: (NO_TOKEN, one)}) == {0: True, 1: True}
    assert store.write_progress("t", {0: (b"token-99", two), 1: (token_of(one), two)}) == {0: False, 1: True}
    assert store.read_progress("t", [1, 0, 2]) == [two, zero, None]
    assert store.read_progress("other", [0]) == [None]
    assert store.write_progress("t", {}) == {}


def test_the_marks_say_what_the_progress_says(store):
    assert store.read_marks("t", []) == []
    values = {n: encode_progress(Progress("life", n, 100 + n, 0, [("item", 1.0)]), NO_TOKEN) for n in (0, 1)}
    store.write_progress("t", {n: (NO_TOKEN, value) for n, value in values.items()}, store.server_id())
    zero, two, one = store.read_marks("t", [0, 2, 1])
    assert set(two) <= {None}
    for n, marks in enumerate((zero, one)):
        assert {(m.incarnation, m.generation, m.next_offset) for m in map(decode_mark, marks)} <= {("life", n, 100 + n)}


def test_a_damaged_value_set_aside_does_not_stand_in_the_way(store):
    assert store.write([StateWrite("u", NO_TOKEN, b"short")]) == [True]
    store.quarantine("u", b"short")
    assert store.write([StateWrite("u", token_of(b"short"), encode_state(UserState(events=5)))]) == [True]
    assert decode_state(store.read(["u"])[0]).events == 5


def test_a_value_of_another_type_counts_as_none(redis_settings):
    store = RedisStateStore(redis_settings)
    store._redis.lpush(f"{redis_settings.redis_prefix}u:u", "x")
    assert store.read(["u"]) == [None]
    assert store.write([StateWrite("u", NO_TOKEN, encode_state(UserState(events=1)))]) == [True]
    assert decode_state(store.read(["u"])[0]).events == 1
    store.close()


def test_states_go_after_their_time_and_progress_stays(redis_settings):
    store = RedisStateStore(redis_settings.model_copy(update={"user_ttl_s": 1000}))
    put(store, "u", UserState(events=1))
    store.write_progress("t", {0: (NO_TOKEN, b"token-00 zero")})
    assert 990 < store._redis.ttl(f"{redis_settings.redis_prefix}u:u") <= 1000
    assert store._redis.ttl(f"{redis_settings.redis_prefix}p:t:0") == -1
    store.close()


def test_a_server_that_does_not_answer_is_named():
    store = RedisStateStore(RedisSettings(redis_url="redis://127.0.0.1:1/0"))
    with pytest.raises(Unavailable, match=r"Redis at 127\.0\.0\.1:1"):
        store.read(["u"])


def scanned(store: StateStore, count: int) -> list[list[str]]:
    """What each call brought."""
    cursor, users = store.scan(0, count)
    calls = [users]
    while cursor:
        cursor, users = store.scan(cursor, count)
        calls.append(users)
    return calls


def test_a_scan_comes_by_every_user_and_ends(store):
    users = {f"u{n}" for n in range(700)} | {"ü/{}: \n", "*", "c" * 256}
    store.write([StateWrite(user, NO_TOKEN, encode_state(UserState(events=1))) for user in users])
    store.write_progress("t", {0: (NO_TOKEN, encode_progress(Progress("", 0, 0, 0, []), NO_TOKEN))})
    calls = scanned(store, 100)
    assert set().union(*calls) == users
    assert len(calls) > 2
    assert store.count_users() >= len(users)


def test_a_write_that_keeps_the_time_to_live_is_a_write_like_any_other(store):
    first = put(store, "u", UserState(events=1))
    second = encode_state(UserState(token=token_of(first), events=2))
    assert store.write([StateWrite("u", token_of(first), second)], keep_ttl=True) == [True]
    assert store.write([StateWrite("u", token_of(first), second)], keep_ttl=True) == [False]
    assert store.read(["u"]) == [second]


def test_redis_lets_a_state_expire_when_it_would_have(redis_settings):
    store = RedisStateStore(redis_settings)
    first = put(store, "u", UserState(events=1))
    key = f"{redis_settings.redis_prefix}u:u"
    store._redis.expire(key, 100)
    second = encode_state(UserState(token=token_of(first), events=2))
    store.write([StateWrite("u", token_of(first), second)], keep_ttl=True)
    assert 90 < store._redis.ttl(key) <= 100
    store.write([StateWrite("u", token_of(second), encode_state(UserState(token=token_of(second))))])
    assert store._redis.ttl(key) > 100
    store.close()


def test_a_prefix_with_special_characters_is_taken_literally(redis_settings):
    one = RedisStateStore(redis_settings.model_copy(update={"redis_prefix": redis_settings.redis_prefix + "[a]*?"}))
    other = RedisStateStore(redis_settings.model_copy(update={"redis_prefix": redis_settings.redis_prefix + "axx"}))
    put(one, "mine", UserState(events=1))
    put(other, "theirs", UserState(events=1))
    assert [user for users in scanned(one, 1000) for user in users] == ["mine"]
    one.close()
    other.close()


def test_it_tells_how_full_it_is(store):
    before = store.memory()
    for n in range(2000):
        put(store, f"user-{n}", UserState(hidden=bytes(256)))
    after = store.memory()
    assert after.used > before.used > -1
    assert after.limit == before.limit > 0
    assert after.evicted == before.evicted


def test_a_cluster_is_as_full_as_its_fullest_server():
    store = MemoryClusterStateStore(3)
    full = store._servers[1]
    full.limit_bytes = 1000
    full.users["u"] = bytes(900)
    store._servers[2].users["v"] = bytes(5000)
    assert store.memory() == StoreMemory(900, 1000, 0)
    servers = [StoreMemory(50, 1000, 7), StoreMemory(90, 100, 0), StoreMemory(800, 1000, 2)]
    assert StoreMemory.of_servers(servers) == StoreMemory(90, 100, 9)


def test_the_limit_is_that_of_redis_or_of_its_machine(tmp_path):
    if redis_server_path() is None:
        pytest.skip("no redis-server of our own: the limit of a server that others use is not ours to set")
    server = RedisServer(tmp_path)
    server.start()
    store = RedisStateStore(RedisSettings(redis_url=server.url))
    whole = store.memory().limit
    with contextlib.closing(redis.Redis(port=server.port)) as client:
        client.config_set("maxmemory", 1 << 30)
    assert store.memory().limit == 1 << 30 < whole
    store.close()
    server.stop()
