"""The services on a Redis Cluster: the loop, and a server that dies with writes that its replica never got."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.adapters.kafka_reader import OffsetReader
from shared.adapters.redis_cluster import BUCKETS, TAGS, slot_of
from shared.adapters.settings import KafkaSettings, RedisSettings
from shared.adapters.state_stores import state_store
from shared.core.errors import SettingsInvalid, Unavailable
from shared.core.ports import StateWrite
from shared.core.progress import decode_mark
from shared.core.state import NO_TOKEN
from tests import servers
from tests.integration.recommender_process import Process
from tests.integration.test_consumer import World
from tests.redis_cluster import LocalRedisCluster
from tests.servers import until


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[LocalRedisCluster]:
    if not LocalRedisCluster.possible():
        servers.missing("no redis-server and redis-cli: install redis")
    cluster = LocalRedisCluster(tmp_path / "cluster")
    cluster.start()
    yield cluster
    cluster.stop()


def test_the_buckets_lie_evenly_in_the_slots():
    assert [slot_of(tag) // (16384 // BUCKETS) for tag in TAGS] == list(range(BUCKETS))
    assert slot_of(b"123456789") == 0x31C3  # the example of the cluster specification


def test_what_a_cluster_cannot_have_is_refused():
    for changes in ({"redis_url": "redis://h:1/3"}, {"redis_url": "unix:///s"}, {"redis_prefix": "a{b}:"}):
        with pytest.raises(SettingsInvalid, match="REDIS_CLUSTER"):
            state_store(RedisSettings(**{"redis_cluster": True, **changes}))  # type: ignore[arg-type]


def test_it_is_as_full_as_its_fullest_server(cluster: LocalRedisCluster):
    store = state_store(cluster.settings(redis_prefix="dw:"))
    whole, limit = store.memory(), 64 << 20
    victim = cluster.primaries()[1]
    with victim.client() as client:
        client.config_set("maxmemory", limit)
        used = client.info("memory")["used_memory"]
    told = store.memory()
    assert whole.limit > told.limit == limit
    assert told.used == pytest.approx(used, rel=0.2)
    store.close()


def test_a_server_dies_and_what_its_replica_lacks_is_read_again(
    kafka_settings: KafkaSettings, cluster: LocalRedisCluster, tmp_path: Path
):
    """One server goes back in time and the others do not: every state equals that of a clean replay."""
    redis = cluster.settings(redis_prefix="dw:")
    world = World(kafka_settings, redis, tmp_path)
    store = state_store(redis)
    topic, rng = kafka_settings.topic_interactions, random.Random(1)
    users = [f"u{n}" for n in range(80)]
    ends = OffsetReader(kafka_settings)

    def all_marked() -> bool:
        """Whether the progress in every part of the store is at the end of the topic."""
        wanted = {p: end for p, end in ends.end_offsets(topic).items() if end}
        for held, end in zip(store.read_marks(topic, list(wanted)), wanted.values(), strict=True):
            if {mark and mark.next_offset for mark in map(decode_mark, held)} != {end}:
                return False
        return True

    try:
        world.start()
        world.send(users, 300, rng)
        world.settled()
        until(all_marked, 20, "the marks")
        before = store.server_id()
        victim = cluster.primaries()[1]
        replica = cluster.cut_off_replica(victim)
        world.send(users, 300, rng)
        world.settled()
        until(all_marked, 20, "the marks")  # from here on, nothing but the marks tells what the replica lacks
        victim.kill()
        until(lambda: replica in cluster.primaries(), 30, "the replica takes over")
        world.settled(60)
        store.read(users)  # and so finds out who owns what now
        with pytest.raises(Unavailable, match="restarted or replaced"):
            store.write([StateWrite(f"w{n}", NO_TOKEN, b"12345678") for n in range(200)], before)
        world.send(users, 100, rng)
        world.settled()
        until(all_marked, 20, "the marks")
        log = "".join(path.read_text() for path in tmp_path.glob("consumer-*.log"))
        assert "a part of the store lost its last writes" in log
        assert "Traceback" not in log
    finally:
        world.close()
        store.close()
        ends.close()


def test_the_loop_from_http_to_http_on_a_cluster(
    kafka_settings: KafkaSettings, cluster: LocalRedisCluster, tmp_path: Path
):
    system = Process(kafka_settings, cluster.settings(redis_prefix="dw:"), tmp_path)
    try:
        system.publish(1)
        system.start()
        system.start("consumer")
        for user in ("ada", "bob", "cy"):
            system.send(user, "item-1", "item-2")
        for user in ("ada", "bob", "cy"):
            until(lambda user=user: system.ranking(user)["strategy"] == "gru", 60, "the state")
        assert system.client.delete("/v1/users/ada").status_code == 204
        assert system.ranking("ada")["strategy"] == "trending"
        until(
            lambda: {"item-1", "item-2"} <= {i["item_id"] for i in system.ranking("nobody")["items"] if i["score"]}, 20
        )
        assert system.readyz()["redis"] == "ok"
    finally:
        system.close()
