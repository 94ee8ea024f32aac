"""The consumer as a process against real servers, killed, robbed of its topic and of its Redis."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import confluent_kafka
import pytest
import torch
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.admin import NewPartitions, NewTopic
from kafka.consumer.fetcher import ConsumerRecord

from shared.adapters.kafka import KafkaInteractionSource, KafkaPublisher
from shared.adapters.kafka_client import client_config
from shared.adapters.kafka_reader import ensure_topics
from shared.adapters.redis_store import RedisStateStore
from shared.adapters.registry import FileModelRegistry
from shared.adapters.settings import ConsumerSettings, KafkaSettings, RedisSettings
from shared.adapters.state_stores import state_store
from shared.core.engagement import Counted, decode_engagement
from shared.core.errors import TopicRecreated, Unavailable
from shared.core.ports import StateStore
from shared.core.state import decode_state
from shared.model.inference import InferenceModel
from shared.model.rank import Ranked
from tests.conftest import Broker, service_env
from tests.servers import REAL_KAFKA, ROOT, KafkaNode, RedisServer, free_port, until

ITEMS = [f"item-{n}" for n in range(40)]
WIDTH = 16
_clock = itertools.count(1_700_000_000_000)


def publish_model(uri: Path, seed: int = 1) -> InferenceModel:
    g = torch.Generator().manual_seed(seed)
    shapes = {
        "item_embedding": (len(ITEMS), WIDTH),
        "item_bias": (len(ITEMS),),
        "gru.weight_ih_l0": (3 * WIDTH, WIDTH),
        "gru.weight_hh_l0": (3 * WIDTH, WIDTH),
        "gru.bias_ih_l0": (3 * WIDTH,),
        "gru.bias_hh_l0": (3 * WIDTH,),
    }
    weights = {name: torch.randn(shape, generator=g) for name, shape in shapes.items()}
    manifest = FileModelRegistry(str(uri)).publish(weights, ITEMS)
    return InferenceModel(manifest.version, manifest.fingerprint, ITEMS, weights)


class World:
    """One consumer's surroundings, and what its users should look like."""

    def __init__(self, kafka: KafkaSettings, redis: RedisSettings, folder: Path) -> None:
        self.kafka, self.redis, self.folder = kafka, redis, folder
        self.model = publish_model(folder / "models")
        self.sent: dict[str, list[str]] = {}
        self.processes: list[subprocess.Popen[bytes]] = []
        self.producer = KafkaProducer(**client_config(kafka), max_request_size=4 << 20)

    def start(self, **settings: object) -> subprocess.Popen[bytes]:
        self.port = free_port()
        env = service_env(
            self.kafka, self.redis, self.folder / "models", consumer_port=self.port, consumer_host="127.0.0.1",
            consumer_commit_ms=200, consumer_session_timeout_ms=6000, **settings,
        )  # fmt: skip
        log = (self.folder / f"consumer-{len(self.processes)}.log").open("wb")
        process = subprocess.Popen([sys.executable, "-m", "services.consumer"], cwd=ROOT, env=env, stderr=log)
        log.close()
        self.processes.append(process)
        return process

    def send(self, users: list[str], count: int, rng: random.Random) -> None:
        for _ in range(count):
            user, item = rng.choice(users), rng.choice(ITEMS)
            self.send_event(user, item)
        self.producer.flush()

    def send_event(self, user: str, item: str, **extra: object) -> None:
        event = {"user_id": user, "item_id": item, "event_type": "view", "ts": next(_clock), **extra}
        self.producer.send(self.kafka.topic_interactions, key=user.encode(), value=json.dumps(event).encode())
        self.sent.setdefault(user, []).append(item)

    def wrong(self, store: StateStore) -> list[str]:
        """Users whose state is not that of a clean replay of what was sent."""
        users = list(self.sent)
        states = [decode_state(value) for value in store.read(users)]
        sequences = [self.model.known(self.sent[user]) for user in users]
        hidden = self.model.advance(self.model.start(len(users)), sequences)
        return [
            user
            for user, state, row in zip(users, states, hidden, strict=True)
            if state.hidden != row.tobytes()
            or state.events != len(self.sent[user])
            or state.recent_items() != self.sent[user][-32:]
        ]

    def settled(self, seconds: float = 40.0) -> None:
        store = state_store(self.redis)

        def right() -> bool:
            with contextlib.suppress(Exception):
                return not self.wrong(store)
            return False

        try:
            until(right, seconds)
        except AssertionError:
            bad = self.wrong(store)
            states = dict(zip(bad, map(decode_state, store.read(bad)), strict=True))
            counts = {u: (s.events, len(self.sent[u])) for u, s in states.items()}
            logs = "\n".join(p.read_text()[-3000:] for p in sorted(self.folder.glob("consumer-*.log")))
            raise AssertionError(f"(events in state, sent) of wrong users: {counts}\n{logs}") from None
        finally:
            store.close()

    def metric(self, name: str) -> float:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as answer:
                lines = answer.read().decode().splitlines()
        except OSError:
            return -1.0  # not up yet
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))

    def read(self, topic: str, least: int) -> list[ConsumerRecord]:
        """The topic from its start: at least so many records, and all that come with them."""
        reader = KafkaConsumer(topic, auto_offset_reset="earliest", **client_config(self.kafka))
        records: list[ConsumerRecord] = []

        def done() -> bool:
            new = [r for part in reader.poll(500).values() for r in part]
            records.extend(new)
            return not new and len(records) >= least

        until(done, what=f"{least} records of {topic}")
        reader.close()
        return records

    def readyz(self) -> tuple[int, dict[str, object]]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=5) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)
        except OSError:
            return 0, {}

    def close(self) -> None:
        self.producer.close()
        for process in self.processes:
            process.kill()
            process.wait()


MakeWorld = Callable[..., World]


@pytest.fixture
def make_world(tmp_path: Path) -> Iterator[MakeWorld]:
    worlds: list[World] = []

    def make(kafka: KafkaSettings, redis: RedisSettings, folder: Path = tmp_path) -> World:
        worlds.append(World(kafka, redis, folder))
        return worlds[-1]

    yield make
    for world in worlds:
        world.close()


@pytest.fixture
def world(make_world: MakeWorld, kafka_settings: KafkaSettings, redis_settings: RedisSettings) -> World:
    return make_world(kafka_settings, redis_settings)


USERS = [f"user-{n}" for n in range(30)]


def test_states_equal_a_clean_replay_after_sigkill_at_any_time(world: World) -> None:
    rng = random.Random(1)
    for _ in range(4):
        process = world.start()
        world.send(USERS, 300, rng)
        until(lambda: world.readyz()[0] == 200, what="ready")
        world.send(USERS, 300, rng)
        process.kill()
        process.wait()
    world.start()
    world.settled()


def test_an_orderly_stop_leaves_nothing_to_read_again(world: World) -> None:
    process = world.start()
    world.send(USERS, 500, random.Random(2))
    world.settled()
    process.terminate()
    assert process.wait(20) == 0
    world.start()
    until(lambda: world.readyz()[0] == 200)
    world.send(USERS, 50, random.Random(3))
    world.settled()
    assert world.metric('driftwood_consumer_events_total{outcome="redelivered"}') == 0
    assert world.metric('driftwood_consumer_events_total{outcome="applied"}') == 50


def test_two_members_share_the_partitions_and_a_stalled_one_does_no_harm(world: World) -> None:
    import signal

    rng = random.Random(4)
    first = world.start()
    world.send(USERS, 300, rng)
    until(lambda: world.readyz()[0] == 200)
    world.start()
    world.send(USERS, 300, rng)
    until(lambda: world.metric("driftwood_consumer_partitions") == 2, 30, "the second owns two partitions")
    first.send_signal(signal.SIGSTOP)  # stalled: the group takes its partitions away
    world.send(USERS, 300, rng)
    until(lambda: world.metric("driftwood_consumer_partitions") == 4, 40, "the second owns all")
    world.settled()
    first.send_signal(signal.SIGCONT)
    world.send(USERS, 300, rng)
    world.settled()


def test_engagement_is_reported_once_through_a_kill(world: World) -> None:
    """Each outcome on the topic is the rank that the event's item had in the user's ranking before it."""
    rng = random.Random(11)
    for _ in range(2):
        process = world.start(engagement_max_per_s=10_000, engagement_cpu_share=1)
        world.send(USERS, 200, rng)
        world.settled()
        until(lambda: world.metric("driftwood_engagement_scored_total{") >= 100, what="outcomes reported")
        process.kill()
        process.wait()
    process = world.start()
    until(lambda: world.readyz()[0] == 200)
    process.terminate()
    assert process.wait(20) == 0
    sent = {(r.partition, r.offset): json.loads(r.value) for r in world.read(world.kafka.topic_interactions, 400)}
    counted, ranks, users = Counted(), {}, {}
    for record in world.read(world.kafka.topic_engagement, 1):
        batch = counted.take(decode_engagement(record.value))
        for at, rank in zip(batch.offsets, batch.ranks, strict=True) if batch else ():
            place = batch.partition, batch.first_offset + at
            assert place not in ranks
            ranks[place] = batch.strategy, rank
    assert len(ranks) >= 200
    ranked = Ranked(world.model)
    for place, event in sorted(sent.items()):
        item, state = world.model.index[event["item_id"]], users.get(event["user_id"])
        if place in ranks:
            strategy, rank = ranks[place]
            assert strategy == ("trending" if state is None else "gru")
            if state is not None:
                (expected,) = ranked.ranks(state, [item], [()])
                assert rank == (expected if expected <= 20 else 0)
        users[event["user_id"]] = world.model.advance(world.model.start(1) if state is None else state, [[item]])


def test_bad_values_go_to_the_dead_letter_topic_and_good_ones_around_them_are_applied(world: World) -> None:
    good = {"user_id": "u", "item_id": "i", "event_type": "view", "ts": 1_700_000_000_000}
    bad: dict[str, bytes | None] = {
        "not JSON": b"{not json",
        "user_id": json.dumps(good | {"user_id": 7}).encode(),
        "item_id": json.dumps({k: v for k, v in good.items() if k != "item_id"}).encode(),
        "event_type": json.dumps(good | {"event_type": ""}).encode(),
        "ts": json.dumps(good | {"ts": 1_700_000_000}).encode(),
        "future": json.dumps(good | {"ts": 99_999_999_999_999}).encode(),
        "null": None,
        "bytes, more than": json.dumps(good | {"more": "x" * 2_000_000}).encode(),
        "UTF-8": b'{"user_id": "\xff\xfe", "item_id": "i", "event_type": "view", "ts": 1700000000000}',
        "must have 1 to 256": json.dumps(good | {"item_id": "ü" * 129}).encode(),
    }
    world.start()
    for n, value in enumerate(bad.values()):
        world.send_event("mixed", ITEMS[n])
        world.producer.send(world.kafka.topic_interactions, key=b"mixed", value=value)
    world.send_event("mixed", ITEMS[20])
    world.producer.flush()
    world.settled()
    reader = KafkaConsumer(
        world.kafka.topic_dlq,
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=8 << 20,
        **client_config(world.kafka),
    )
    letters = []

    def all_read() -> bool:
        letters.extend(r for records in reader.poll(200).values() for r in records)
        return len(letters) >= len(bad)

    until(all_read, what="dead letters")
    reader.close()
    for (reason, value), letter in zip(bad.items(), sorted(letters, key=lambda r: r.offset), strict=True):
        headers = {k: v.decode() for k, v in letter.headers}
        assert letter.key == b"mixed"
        assert letter.value == value
        assert reason in headers["error"]
        assert headers["source.topic"] == world.kafka.topic_interactions
        assert int(headers["source.offset"]) >= 0
        assert int(headers["source.partition"]) >= 0


def test_a_letter_that_its_topic_does_not_take_is_cut_and_a_record_of_nothing_has_one(
    make_world: MakeWorld, kafka_settings: KafkaSettings, redis_settings: RedisSettings, real_kafka: Broker
) -> None:
    dlq = f"{kafka_settings.topic_dlq}-small"
    admin = KafkaAdminClient(**client_config(kafka_settings))
    admin.create_topics([NewTopic(dlq, 1, 1, topic_configs={"max.message.bytes": "50000"})])
    admin.close()
    world = make_world(kafka_settings.model_copy(update={"topic_dlq": dlq}), redis_settings)
    world.start()
    world.send_event("u", ITEMS[0])
    bad = b"{" * 1_500_000
    world.producer.send(world.kafka.topic_interactions, key=b"u", value=bad)
    world.send_event("u", ITEMS[1])
    world.producer.flush()
    nothing = confluent_kafka.Producer({"bootstrap.servers": world.kafka.kafka_bootstrap_servers})
    nothing.produce(world.kafka.topic_interactions, value=None, key=None)  # kafka-python sends no such record
    assert nothing.flush(20) == 0
    world.send_event("u", ITEMS[2])
    world.settled()
    letters = {bytes(letter.key): letter for letter in world.read(dlq, 2)}
    cut, empty = dict(letters[b"u"].headers), dict(letters[b""].headers)
    assert cut["value.bytes"] == b"1500000"
    assert bad.startswith(letters[b"u"].value)
    assert 0 < len(letters[b"u"].value) < 50_000
    assert empty["key"] == b"null"
    assert letters[b""].value is None


def test_an_event_id_is_applied_once_among_the_last_sixteen(world: World) -> None:
    world.start()
    world.send_event("u", ITEMS[0], event_id="first")
    for n in range(15):
        world.send_event("u", ITEMS[n + 1], event_id=f"e{n}")
    repeat = {"user_id": "u", "item_id": ITEMS[30], "event_type": "view", "ts": next(_clock), "event_id": "first"}
    world.producer.send(world.kafka.topic_interactions, key=b"u", value=json.dumps(repeat).encode())
    world.send_event("u", ITEMS[5])
    world.producer.flush()
    world.settled()


@pytest.mark.usefixtures("real_kafka")
def test_a_topic_made_anew_and_one_given_more_partitions_lose_nothing(world: World) -> None:
    topic = world.kafka.topic_interactions
    admin = KafkaAdminClient(**client_config(world.kafka))
    rng = random.Random(5)
    world.start()
    world.send(USERS, 200, rng)
    world.settled()
    admin.create_partitions({topic: NewPartitions(8)})
    until(lambda: len(admin.describe_topics([topic])[0]["partitions"]) == 8)
    world.producer.close()
    world.producer = KafkaProducer(**client_config(world.kafka))
    for user in USERS:
        world.send_event(user, ITEMS[1])
    world.producer.flush()
    world.settled()
    world.producer.close()  # it would make the topic that it misses
    admin.delete_topics([topic])
    until(lambda: topic not in admin.list_topics())
    admin.create_topics([NewTopic(topic, 4, 1)])
    admin.close()
    world.producer = KafkaProducer(**client_config(world.kafka))
    world.send(USERS, 400, rng)  # offsets begin anew, and soon pass those of before
    world.settled(60)


def test_redis_killed_and_back_without_its_last_writes(
    make_world: MakeWorld, kafka_settings: KafkaSettings, tmp_path: Path
) -> None:
    folder = tmp_path / "redis"
    folder.mkdir()
    server = RedisServer(folder, fsync="everysec")
    server.start()
    world = make_world(kafka_settings, RedisSettings(redis_url=server.url))
    try:
        rng = random.Random(6)
        world.start()
        until(lambda: world.readyz()[0] == 200)
        for _ in range(3):
            world.send(USERS, 300, rng)
            server.kill()
            aof = max(folder.rglob("*.aof"), key=lambda p: p.stat().st_size)
            with aof.open("rb+") as f:  # the tail that never reached the disk
                f.truncate(max(0, aof.stat().st_size * 9 // 10))
            world.send(USERS, 100, rng)
            until(lambda: world.readyz()[0] == 503, what="readyz tells that Redis is away")
            assert "Redis" in str(world.readyz()[1]["stream"])
            server.start()
            world.settled()
            until(lambda: world.readyz()[0] == 200)
    finally:
        server.stop()


@pytest.mark.usefixtures("real_kafka")
def test_broker_killed_and_back(make_world: MakeWorld, redis_settings: RedisSettings, tmp_path: Path) -> None:
    if not REAL_KAFKA.exists():
        pytest.skip("needs a broker of its own to kill: ../shared/kafka")
    folder = tmp_path / "kafka"
    folder.mkdir()
    node = KafkaNode(folder, "num.partitions=4\n")
    node.start()
    kafka = KafkaSettings(kafka_bootstrap_servers=node.bootstrap, kafka_create_topics=True)
    try:
        ensure_topics(kafka)
        world = make_world(kafka, redis_settings)
        rng = random.Random(7)
        world.start()
        world.send(USERS, 300, rng)
        node.kill()
        node.start()
        world.send(USERS, 300, rng)
        world.settled(60)
    finally:
        node.stop()


def lose_last_batches(segment: Path, count: int) -> int:
    """Cut a closed log segment as a machine does that loses its power before the disk has all; records lost."""
    data, at = segment.read_bytes(), 0
    begins, records = [], []
    while at + 61 <= len(data) and (size := int.from_bytes(data[at + 8 : at + 12], "big")):
        begins.append(at)
        records.append(int.from_bytes(data[at + 57 : at + 61], "big"))
        at += 12 + size
    count = min(count, len(begins))
    segment.write_bytes(data[: begins[-count]] if count else data)
    return sum(records[len(records) - count :])


class Losing:
    """Consumers of one broker, each with topics, a group and a part of Redis of its own."""

    def __init__(self, make_world: MakeWorld, redis: RedisSettings, folder: Path) -> None:
        (folder / "kafka").mkdir()
        self.node = KafkaNode(folder / "kafka")
        self._make_world, self._redis, self._folder = make_world, redis, folder
        self.rng = random.Random(11)

    def kafka(self, name: str, partitions: int) -> KafkaSettings:
        topics = {field: f"{name}-{field}" for field in KafkaSettings.model_fields if field.startswith("topic_")}
        kafka = KafkaSettings(kafka_bootstrap_servers=self.node.bootstrap, kafka_partitions=partitions, **topics)
        ensure_topics(kafka)
        return kafka

    def begin(self, name: str) -> World:
        redis = self._redis.model_copy(update={"redis_prefix": f"{self._redis.redis_prefix}{name}:"})
        (self._folder / name).mkdir()
        world = self._make_world(self.kafka(name, 2), redis, self._folder / name)
        world.start(consumer_group=name)
        return world

    def lose_last_batches(self, kafka: KafkaSettings, count: int) -> int:
        """Records lost, of all partitions."""
        segments = list((self._folder / "kafka" / "data").rglob(f"{kafka.topic_interactions}-[0-9]/*.log"))
        assert len(segments) == kafka.kafka_partitions
        return sum(lose_last_batches(segment, count) for segment in segments)


def test_a_broker_that_lost_the_end_of_its_log_doubles_nothing_and_loses_nothing_new(
    make_world: MakeWorld, redis_settings: RedisSettings, tmp_path: Path
) -> None:
    """The new events take the offsets of the lost ones, and reach beyond what was read before, or not; while the
    consumer runs, and while it is away. And the broker is asked where its log was lost: what a client remembers of its
    leaders may be older than the loss, or of another life of the topic. Who had read nothing yet notices it, too."""
    if not REAL_KAFKA.exists():
        pytest.skip("needs a broker of its own to kill: ../shared/kafka")
    losing = Losing(make_world, redis_settings, tmp_path)
    node, rng = losing.node, losing.rng
    node.start()
    try:
        source = KafkaInteractionSource(asked := losing.kafka("asked", 1), ConsumerSettings(consumer_group="asked"))
        idle = KafkaInteractionSource(asked, ConsumerSettings(consumer_group="idle"))
        publisher = KafkaPublisher(asked)
        publisher.send(asked.topic_dlq, b"k", b"acknowledged")
        publisher.flush(30)
        _send_one_by_one(asked, 10)
        worlds = {
            (running, more): losing.begin(f"{'running' if running else 'away'}-{more}")
            for running, more in itertools.product((True, False), (1, 400))
        }
        for world in worlds.values():
            for _ in range(10):
                world.send(USERS, 30, rng)
        for world in worlds.values():
            world.settled(60)
        until(lambda: source.poll(0.2, 100).assigned, what="the partition")
        source.seek(0, 0)
        records = until(lambda: source.poll(0.2, 100).records, what="records")[0]
        epoch = records[-1].leader_epoch
        assert source.lost_from(0, 10, epoch) is None
        until(lambda: idle.poll(0.2, 100).assigned, what="the partition")
        idle.seek(0, 10, epoch)
        for _ in range(3):
            assert not idle.poll(0.2, 100).records
        time.sleep(1)  # the progress follows within CONSUMER_COMMIT_MS
        for (running, _), world in worlds.items():
            if not running:
                world.processes[-1].kill()
                world.processes[-1].wait()
        node.kill()
        publisher.send(asked.topic_dlq, b"k", b"never acknowledged")
        publisher.close()
        until(lambda: not publisher._producer._sender.is_alive(), 10, "the thread of what was closed to end")
        assert losing.lose_last_batches(asked, 3) == 3
        for world in worlds.values():
            assert losing.lose_last_batches(world.kafka, 5) > 20
        node.start()
        for (running, more), world in worlds.items():
            world.producer.close()  # the broker forgot its last records, and refuses what would follow them
            world.producer = KafkaProducer(**client_config(world.kafka))
            world.send(USERS, more, rng)
            if not running:
                world.start(consumer_group=f"away-{more}")
        _send_one_by_one(asked, 5)  # beyond where it was read to
        until(lambda: _bounds(source) == (0, 12), what="the broker again")
        assert source.lost_from(0, 10, epoch + 100) is None  # the broker knows nothing of that one
        source._consumer._manager.cluster._partitions[asked.topic_interactions][0].leader_epoch = epoch
        assert source.lost_from(0, 10, epoch) == 7
        assert source.lost_from(0, 7, epoch) is None
        until(lambda: _lost_its_end(idle), 30, "who has read nothing to notice")
        for world in worlds.values():
            world.settled(60)
            world.send(USERS, 50, rng)
        for world in worlds.values():
            world.settled(60)
        source.close()
        idle.close()
    finally:
        node.stop()


def _lost_its_end(source: KafkaInteractionSource) -> bool:
    try:
        assert not source.poll(0.2, 100).records
    except TopicRecreated:
        return True
    except Unavailable:
        return False
    return False


def _send_one_by_one(kafka: KafkaSettings, count: int) -> None:
    """A batch each."""
    producer = KafkaProducer(**client_config(kafka))
    for _ in range(count):
        producer.send(kafka.topic_interactions, b"lost or not").get(30)
    producer.close()


def _bounds(source: KafkaInteractionSource) -> tuple[int, int] | None:
    try:
        return source.bounds([0])[0]
    except Unavailable:
        return None


def test_no_topic_is_said_and_waited_for(world: World, redis_settings: RedisSettings) -> None:
    kafka = world.kafka.model_copy(update={"topic_interactions": f"{world.kafka.topic_interactions}-absent"})
    if kafka.kafka_api_version:
        pytest.skip("the embedded broker makes every topic that is asked for")
    world.kafka = kafka
    world.start()
    until(lambda: kafka.topic_interactions in str(world.readyz()), what="readyz names the topic")
    assert world.readyz()[0] == 503
    admin = KafkaAdminClient(**client_config(kafka))
    admin.create_topics([NewTopic(kafka.topic_interactions, 2, 1)])
    admin.close()
    world.send(USERS, 50, random.Random(8))
    world.settled(60)


def test_a_damaged_value_is_set_aside_and_said(world: World) -> None:
    store = RedisStateStore(world.redis)
    world.start()
    world.send_event("hurt", ITEMS[3])
    world.producer.flush()
    world.settled()
    key = f"{world.redis.redis_prefix}u:hurt"
    store._redis.set(key, b"no state at all")
    world.sent["hurt"] = []
    world.send_event("hurt", ITEMS[4])
    world.producer.flush()
    world.settled()
    assert store._redis.get(f"{world.redis.redis_prefix}damaged:hurt") == b"no state at all"
    assert "hurt" in (world.folder / "consumer-0.log").read_text()
    store.close()


def test_a_new_model_is_taken_live_and_states_are_rebuilt(world: World) -> None:
    world.start()
    world.send(USERS, 200, random.Random(9))
    world.settled()
    world.model = publish_model(world.folder / "models", seed=2)
    until(lambda: world.readyz()[1].get("model") == "2")
    for user in USERS:
        world.sent[user] = world.sent.get(user, [])[-32:]
    store = RedisStateStore(world.redis)
    for user in USERS:
        world.send_event(user, ITEMS[7])
    world.producer.flush()

    def rebuilt() -> bool:
        states = [decode_state(v) for v in store.read(USERS)]
        hidden = world.model.advance(
            world.model.start(len(USERS)), [world.model.known(world.sent[user]) for user in USERS]
        )
        return all(s.hidden == row.tobytes() for s, row in zip(states, hidden, strict=True))

    until(rebuilt)
    store.close()
