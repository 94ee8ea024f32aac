"""A recommender of in-memory twins: everything but the sockets."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence

import httpx
import torch
from prometheus_client import CollectorRegistry

from services.recommender.app import Parts, build_app
from services.recommender.batch import BatchRanker
from services.recommender.cache import RankingCache
from services.recommender.console.engagement import EngagementHistory
from services.recommender.console.live import Live
from services.recommender.console.view import Console, Watches
from services.recommender.console.watch import JournalWatch, PresenceWatch, StreamWatch
from services.recommender.emitter import Emitter, EmitterOptions
from services.recommender.forget import Forgetter, TopicNames
from services.recommender.metrics import RecommenderMetrics
from services.recommender.new_items import Folding
from services.recommender.outbox import Outbox
from services.recommender.popular import TrendingView
from services.recommender.queries import Ids
from services.recommender.ranker import Ranker
from services.recommender.readiness import Readiness
from services.recommender.recommendations import Recommendations
from services.recommender.serving import Serving
from services.recommender.topics import Topics
from services.recommender.user_view import UserViews
from shared.adapters.memory import MemoryBroker, MemoryPublisher, MemoryRecord, MemoryStateStore
from shared.adapters.memory_registry import MemoryModelRegistry
from shared.adapters.presence import MemoryPresence, PresenceServer
from shared.adapters.stream_end import MemoryStreamEnd
from shared.adapters.topic_tail import MemoryTopicTail
from shared.core.events import EventRules
from shared.core.ports import StateWrite
from shared.core.progress import Progress, encode_progress
from shared.core.state import UserState, decode_state, encode_state, token_of
from shared.core.trending import Trending
from shared.model.fold_in import FoldIn
from shared.model.inference import InferenceModel
from shared.model.network import NO_REPEATS

ITEMS = [f"item-{n}" for n in range(300)]
WIDTH = 8
NAMES = TopicNames("interactions", "recommendations", "state-updates", "forgets")


def weights(seed: int = 0, items: int = len(ITEMS), width: int = WIDTH) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    shapes = {
        "item_embedding": (items, width),
        "item_bias": (items,),
        "gru.weight_ih_l0": (3 * width, width),
        "gru.weight_hh_l0": (3 * width, width),
        "gru.bias_ih_l0": (3 * width,),
        "gru.bias_hh_l0": (3 * width,),
    }
    return {name: torch.randn(shape, generator=g) for name, shape in shapes.items()}


class MemoryTopics:
    """TopicAdmin and OffsetReader over the broker in memory."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self._known = 0

    def describe(self, topic: str) -> tuple[str, list[int]]:
        self._broker.check()
        held = self._broker.topics[topic]
        return held.life, list(range(len(held.partitions)))

    def end_offsets(self, topic: str, partitions: Sequence[int] | None = None) -> dict[int, int]:
        """Where none are named, of those that were there at the first call: a client learns of new ones later."""
        self._broker.check()
        logs = self._broker.topics[topic].partitions
        self._known = min(self._known or len(logs), len(logs))
        return {n: len(logs[n]) for n in (range(self._known) if partitions is None else partitions)}

    def close(self) -> None:
        pass


class MemoryUpdates:
    """UpdateReader over the broker in memory: starts behind what was committed."""

    def __init__(self, broker: MemoryBroker, topic: str) -> None:
        self._broker, self._topic = broker, topic
        self._at = {p: broker.committed.get(("g", topic, p), 0) for p in range(len(broker.topics[topic].partitions))}

    def poll(self, timeout_s: float, max_records: int) -> list[MemoryRecord]:
        self._broker.check()
        records = []
        for partition, log in enumerate(self._broker.topics[self._topic].partitions):
            records += log[self._at[partition] :]
            self._at[partition] = len(log)
        return records

    def commit(self, records: Sequence[MemoryRecord]) -> None:
        self._broker.check()
        for record in records:
            self._broker.committed["g", self._topic, record.partition] = record.offset + 1

    def rewind(self, records: Sequence[MemoryRecord]) -> None:
        for record in reversed(records):
            self._at[record.partition] = min(self._at[record.partition], record.offset)

    def close(self) -> None:
        pass


class Twin:
    """The whole recommender; ``stop`` it. Calls go through ASGI, each in an event loop of its own."""

    def __init__(self, model: bool = True, rules: EventRules | None = None, **options: object) -> None:
        self.store, self.broker, self.registry = MemoryStateStore(), MemoryBroker(), MemoryModelRegistry()
        for topic in ("interactions", "recommendations", "state-updates", "forgets", "engagement"):
            self.broker.create(topic)
        self.metrics = RecommenderMetrics(CollectorRegistry())
        self.topics = Topics(MemoryTopics(self.broker), MemoryTopics(self.broker))
        self.trending = TrendingView(
            self.store, "interactions", lambda: self.topics.describe("interactions")[1], 3600, 100, 60,
            Folding(lambda: self.ranker.serving, 3, 50, self.metrics).update,
        )  # fmt: skip
        self.cache = RankingCache(1000)
        self.batches = BatchRanker(self.store, lambda: self.trending.current, self.cache, self.metrics)
        self.ranker = Ranker(self.batches, 32, 5.0, self.metrics)
        self.outbox = Outbox(self._connect, 1.0)
        self.model: InferenceModel | None = None
        self.problem: str | None = None
        if model:
            self.publish(0)
        ids = Ids()
        self.emitter = Emitter(
            lambda: MemoryUpdates(self.broker, "state-updates"),
            self._connect,
            self.ranker,
            ids,
            EmitterOptions("state-updates", "recommendations", 5, 0.0),
            self.metrics,
        )
        self.readiness = Readiness(
            {"redis": self.store.server_id, "kafka": lambda: self.topics.describe("interactions")},
            lambda: {"model": self.model.version if self.model else "none published yet"},
        )
        self.forgetter = Forgetter(self.store, self.topics, self.outbox, NAMES)
        parts = Parts(
            self.ranker,
            Recommendations(self.ranker, ids, self.metrics),
            self.outbox,
            self.forgetter,
            self.registry,
            lambda: self.problem,
            self.readiness,
            rules or EventRules(),
            "interactions",
            self.metrics,
            users=UserViews(self.store, lambda: self.ranker.serving, self.registry),
            **{"console": self._console(), **options},  # type: ignore[arg-type]
        )
        self.app = build_app(parts)
        self.ranker.start()
        self.outbox.start()

    def _console(self) -> Console:
        self.presence, self.live, self.history = PresenceServer(), Live(), EngagementHistory()
        watches = Watches(
            StreamWatch(
                lambda: MemoryTopicTail(self.broker, "engagement", 1000),
                lambda: MemoryStreamEnd(self.broker, "group", "interactions"),
                self.history,
                self.live,
            ),
            PresenceWatch(
                MemoryPresence(self.presence, "me", 10), self.metrics.given, self.emitter.recent, True, self.live
            ),
            JournalWatch(self.registry),
        )
        self.console = Console(
            watches, self.live, self.history, self.emitter.recent,
            lambda: self.ranker.serving, lambda: self.problem, 0.1,
        )  # fmt: skip
        return self.console

    def _connect(self) -> MemoryPublisher:
        self.broker.check()
        return MemoryPublisher(self.broker)

    def publish(self, seed: int, never_again: bool = False) -> InferenceModel:
        made = weights(seed)
        if never_again:
            made[NO_REPEATS] = torch.ones(1)
        manifest = self.registry.publish(made, ITEMS)
        self.model = InferenceModel(manifest.version, manifest.fingerprint, ITEMS, made)
        self.ranker.serve(Serving(self.model))
        return self.model

    def stop(self) -> None:
        self.outbox.stop()
        self.ranker.stop()
        self.readiness.close()
        self.forgetter.close()

    def act(self, user: str, *items: str, ts: int = 1_700_000_000_000) -> UserState:
        """Apply events to the user's state as a consumer would."""
        value = self.store.users.get(user)
        state = decode_state(value)
        known: list[int] = []
        if self.model is not None:
            if state.fingerprint != self.model.fingerprint:
                known = self.model.known(state.recent_items())
                state.hidden, state.fingerprint = bytes(2 * WIDTH), self.model.fingerprint
            known += self.model.known(items)
            hidden = torch.frombuffer(bytearray(state.hidden), dtype=torch.float16).numpy().reshape(1, WIDTH)
            state.hidden = self.model.advance(hidden, [known]).tobytes()
        for item in items:
            state.push_item(item, 32)
        state.events += len(items)
        state.last_ts = ts
        self.store.write([StateWrite(user, token_of(value), encode_state(state))])
        return state

    def dismiss(self, user: str, *items: str, until_s: float) -> None:
        """Apply dismissals to the user's state as a consumer would."""
        value = self.store.users.get(user)
        state = decode_state(value)
        for item in items:
            state.dismiss(item, int(until_s), int(time.time()))
        self.store.write([StateWrite(user, token_of(value), encode_state(state))])

    def popular(self, partition: int, *items: str, folding: FoldIn | None = None) -> None:
        """Let the consumer have counted these in a partition, and collected these states of new items."""
        counts = Trending(3600, 100)
        for item in items:
            counts.add(item, 1_700_000_000_000)
        landmark, top = counts.snapshot()
        life, _ = self.topics.describe("interactions")
        held = token_of(self.store.progress.get(("interactions", partition)))
        typical = [] if folding is None else [state for state, _ in folding.typical]
        folded = (folding.fingerprint, folding.snapshot(), typical) if folding is not None else (0, [], [])
        value = encode_progress(Progress(life, 0, len(items), landmark, top, counts.total, *folded), held)
        self.store.progress["interactions", partition] = value
        self.trending.refresh()

    def call(self, method: str, path: str, **options: object) -> httpx.Response:
        return self.calls((method, path, options))[0]

    def calls(self, *requests: tuple[str, str, dict[str, object]]) -> list[httpx.Response]:
        """All at the same time."""

        async def run() -> list[httpx.Response]:
            transport = httpx.ASGITransport(self.app)  # type: ignore[arg-type]
            async with httpx.AsyncClient(transport=transport, base_url="http://twin") as client:
                return await asyncio.gather(*(client.request(m, p, **o) for m, p, o in requests))  # type: ignore[arg-type]

        return asyncio.run(run())

    def ranking(self, user: str, query: str = "") -> dict[str, object]:
        response = self.call("GET", f"/v1/users/{user}/recommendations{query}")
        assert response.status_code == 200, response.text
        return json.loads(response.content)

    def session(self, items: Sequence[str], **more: object) -> dict[str, object]:
        response = self.call("POST", "/v1/recommendations", json={"items": list(items), **more})
        assert response.status_code == 200, response.text
        return json.loads(response.content)


def ids(ranking: dict[str, object]) -> list[str]:
    return [item["item_id"] for item in ranking["items"]]  # type: ignore[attr-defined, index]
