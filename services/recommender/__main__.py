"""Starts the recommender: ``python -m services.recommender``, settings from the environment."""

from __future__ import annotations

import logging
import signal
import socket
import sys
import uuid
from collections.abc import Sequence

import torch
from pydantic import ValidationError

from services.recommender.api_keys import keys_of_setting
from services.recommender.app import Parts, build_app
from services.recommender.batch import BatchRanker
from services.recommender.cache import RankingCache
from services.recommender.connections import ConnectionLimits
from services.recommender.console.engagement import KEEP_S, EngagementHistory
from services.recommender.console.live import Live
from services.recommender.console.view import Console, Watches
from services.recommender.console.watch import TURN_S, JournalWatch, PresenceWatch, StreamWatch
from services.recommender.emitter import Emitter, EmitterOptions
from services.recommender.forget import Forgetter, TopicNames
from services.recommender.guard import HttpRules
from services.recommender.http_server import Keys, http_server
from services.recommender.metrics import RecommenderMetrics
from services.recommender.new_items import Folding
from services.recommender.outbox import Outbox
from services.recommender.popular import TrendingView
from services.recommender.popular_now import PopularNow
from services.recommender.queries import Ids
from services.recommender.ranker import Ranker
from services.recommender.rate_limit import RateLimit
from services.recommender.readiness import Readiness
from services.recommender.recommendations import Recommendations
from services.recommender.serving import Serving
from services.recommender.topics import Topics
from services.recommender.user_view import UserViews
from shared.adapters.kafka import KafkaPublisher
from shared.adapters.kafka_client import TopicAdmin
from shared.adapters.kafka_reader import KafkaReader, OffsetReader, ensure_topics
from shared.adapters.logs import configure_logging
from shared.adapters.model_watch import ModelWatch
from shared.adapters.presence import RedisPresence
from shared.adapters.registry import FileModelRegistry
from shared.adapters.settings import (
    ConsumerSettings,
    EventSettings,
    HttpSettings,
    KafkaSettings,
    LoggingSettings,
    RecommenderSettings,
    RedisSettings,
    RegistrySettings,
    listed,
)
from shared.adapters.state_stores import state_store
from shared.adapters.stream_end import KafkaStreamEnd
from shared.adapters.topic_tail import KafkaTopicTail
from shared.adapters.watched_file import WatchedFile
from shared.core.errors import SettingsInvalid
from shared.core.progress import Progress
from shared.core.trending import Trending
from shared.model.inference import InferenceModel

log = logging.getLogger("driftwood.recommender")

_ENGAGEMENT_TAIL = 1_000_000
"""Records of each partition that the console begins with, at most: all of the six hours that it shows, where they are
no more than 46 a second. Of each model version consumers write one a second for each partition of interactions."""
_PRESENCE_S = 10.0


class System:
    """Everything that runs beside the HTTP server, and the parts that the server is built from."""

    def __init__(
        self,
        settings: RecommenderSettings,
        http: HttpSettings,
        kafka: KafkaSettings,
        redis: RedisSettings,
        registry_settings: RegistrySettings,
        events: EventSettings,
        trending: ConsumerSettings,
    ) -> None:
        self.metrics = RecommenderMetrics()
        self.keys = _keys(http, self.metrics)
        # A request waits no longer than its deadline, so neither does a question to Redis.
        redis_timeout_s = min(redis.redis_timeout_s, settings.rank_deadline_ms / 1000)
        self.store = state_store(redis.model_copy(update={"redis_timeout_s": redis_timeout_s}))
        self.topics = Topics(TopicAdmin(kafka), OffsetReader(kafka))
        self.probes = Topics(TopicAdmin(kafka), OffsetReader(kafka))  # /readyz waits for nobody
        self.folding = Folding(
            lambda: self.ranker.serving,
            trending.fold_in_min,
            trending.fold_in_items,
            self.metrics,
            trending.popularity_half_life_s,
        )
        self.popular_now = PopularNow(
            lambda: self.ranker.serving,
            trending.popularity_half_life_s,
            trending.trending_items,
            trending.popularity_refresh_s,
            self.metrics,
            trending.refine_items,
        )
        self.trending = TrendingView(
            self.store,
            kafka.topic_interactions,
            lambda: self.topics.describe(kafka.topic_interactions)[1],
            trending.trending_half_life_s,
            trending.trending_items,
            settings.trending_refresh_ms / 1000,
            self._look,
        )
        batches = BatchRanker(
            self.store, lambda: self.trending.current, RankingCache(settings.rank_cache_users), self.metrics
        )
        self.ranker = Ranker(batches, settings.rank_max_batch, settings.rank_deadline_ms / 1000, self.metrics)
        registry = FileModelRegistry(registry_settings.model_uri)
        self.watch = ModelWatch(
            registry.current,
            lambda version: _load(registry, version),
            registry_settings.model_poll_s,
            self._adopt,
        )

        def publisher() -> KafkaPublisher:
            if kafka.kafka_create_topics:
                ensure_topics(kafka)
            return KafkaPublisher(kafka)

        def updates() -> KafkaReader:
            self.topics.describe(kafka.topic_state_updates)  # one that is missing would be waited for in silence
            return KafkaReader(kafka, kafka.topic_state_updates, settings.recommender_group)

        self.outbox = Outbox(publisher, settings.http_kafka_timeout_ms / 1000)
        ids = Ids()
        names = TopicNames(
            kafka.topic_interactions, kafka.topic_recommendations, kafka.topic_state_updates, kafka.topic_forgets
        )
        self.emitter = Emitter(
            updates,
            publisher,
            self.ranker,
            ids,
            EmitterOptions(
                kafka.topic_state_updates, kafka.topic_recommendations, settings.emit_k, settings.emit_linger_ms / 1000
            ),
            self.metrics,
        )
        self.emits = settings.emit_topic
        self.readiness = Readiness(
            {"redis": self.store.server_id, "kafka": lambda: [self.probes.describe(name) for name in names]},
            self._notes,
        )
        self.parts = Parts(
            self.ranker,
            Recommendations(self.ranker, ids, self.metrics),
            self.outbox,
            Forgetter(self.store, self.topics, self.outbox, names, timeout_s=2 * settings.http_kafka_timeout_ms / 1000),
            registry,
            lambda: self.watch.problem,
            self.readiness,
            events.rules(),
            kafka.topic_interactions,
            self.metrics,
            _rules(http, self.keys),
            users=UserViews(self.store, lambda: self.ranker.serving, registry),
            console=self._console(settings, kafka, redis, trending.consumer_group, registry),
        )

    def _console(
        self,
        settings: RecommenderSettings,
        kafka: KafkaSettings,
        redis: RedisSettings,
        consumer_group: str,
        registry: FileModelRegistry,
    ) -> Console | None:
        if not settings.console:
            return None
        live, history, recent = Live(), EngagementHistory(), self.emitter.recent
        self.presence = RedisPresence(redis, "recommenders", f"{socket.gethostname()}-{uuid.uuid4().hex}", _PRESENCE_S)
        watches = Watches(
            StreamWatch(
                lambda: KafkaTopicTail(kafka, kafka.topic_engagement, _ENGAGEMENT_TAIL, KEEP_S),
                lambda: KafkaStreamEnd(kafka, consumer_group, kafka.topic_interactions),
                history,
                live,
                lambda lag: self.metrics.stream_lag(consumer_group, lag),
            ),
            PresenceWatch(self.presence, self.metrics.given, recent, settings.emit_topic, live),
            JournalWatch(registry),
        )
        return Console(watches, live, history, recent, lambda: self.ranker.serving, lambda: self.watch.problem, TURN_S)

    def _look(self, progresses: Sequence[Progress], counts: Trending) -> None:
        self.folding.update(progresses, counts)
        self.popular_now.update(progresses)

    def _adopt(self, model: InferenceModel) -> None:
        serving = Serving(model)
        self.ranker.serve(serving)
        self.metrics.model.clear()
        self.metrics.model.labels("recommender", model.version).set(1)
        log.info("ranks with a new model", extra={"model_version": model.version, **serving.describe()})

    def _notes(self) -> dict[str, object]:
        serving = self.ranker.serving
        keys = {"api_keys": self.keys.problem} if self.keys.problem else {}
        return {
            **keys,
            "model": serving.model.version if serving else "none published yet: rankings are trending",
            "model_problem": self.watch.problem,
            "emission": (self.emitter.problem or "ok") if self.emits else "off",
        }

    def start(self) -> None:
        """Start all threads but the keys'; the model is loaded when this returns, if there is one."""
        self.watch.start()
        self.ranker.start()
        self.trending.start()
        self.outbox.start()
        if self.emits:
            self.emitter.start()
        if self.parts.console is not None:
            self.parts.console.start()

    def stop(self) -> None:
        """Finish what was begun, in the order in which one needs the other."""
        if self.parts.console is not None:
            self.parts.console.stop()
            self.presence.close()
        if self.emits:
            self.emitter.stop()
        self.outbox.stop()
        self.trending.stop()
        self.watch.stop()
        self.ranker.stop()
        self.keys.stop()
        self.parts.forgetter.close()
        self.readiness.close()
        self.topics.close()
        self.probes.close()
        self.store.close()


def _load(registry: FileModelRegistry, version: str) -> InferenceModel:
    stored = registry.load(version)
    return InferenceModel(version, stored.manifest.fingerprint, stored.items, stored.weights)


def _keys(http: HttpSettings, metrics: RecommenderMetrics) -> Keys:
    path = http.http_api_keys_file
    file = WatchedFile(path, "HTTP_API_KEYS_FILE") if path else None
    return Keys(keys_of_setting(http.http_api_keys.get_secret_value()), file, metrics)


def _rules(http: HttpSettings, keys: Keys) -> HttpRules:
    burst = http.http_rate_burst or max(1, round(2 * http.http_rate_per_s))
    rate = RateLimit(http.http_rate_per_s, burst) if http.http_rate_per_s else None
    return HttpRules(
        keys.ring,
        rate,
        http.http_public_metrics,
        http.http_max_requests,
        http.http_max_body_bytes,
        http.http_body_timeout_s,
    )


def main(arguments: Sequence[str] = ()) -> int:
    """Run until SIGTERM or SIGINT; the exit code."""
    try:
        settings, http = RecommenderSettings(), HttpSettings()
        kafka, redis = KafkaSettings(), RedisSettings()
        registry, events, trending = RegistrySettings(), EventSettings(), ConsumerSettings()
        configure_logging(LoggingSettings())
    except (ValidationError, SettingsInvalid) as error:
        print(f"settings: {error}", file=sys.stderr)  # noqa: T201 - logging is not set up yet
        return 2
    torch.set_num_threads(settings.torch_threads)
    # Threads of the server, the ranker and the emitter take turns, several times in each batch: by default each waits
    # up to 5 ms for its turn while another computes.
    sys.setswitchinterval(0.00005)
    try:
        system = System(settings, http, kafka, redis, registry, events, trending)
        system.keys.start()
    except SettingsInvalid as error:
        log.critical("settings: %s", error)
        return 2
    limits = ConnectionLimits(http.http_max_connections, http.http_max_header_bytes, http.http_header_timeout_s)
    trusted = listed(http.http_trusted_proxies)
    server = http_server(build_app(system.parts), http.http_host, http.http_port, limits, trusted, system.metrics)

    def on_signal(number: int, _frame: object) -> None:
        # While the model is read; later uvicorn's own, which raises the signal once more when it is done.
        log.info("stopping", extra={"signal": number})
        server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    system.start()
    stopped = server.should_exit
    if not stopped:
        log.info("recommender starts", extra={"host": http.http_host, "port": http.http_port})
        server.run()
    system.stop()
    log.info("recommender stopped")
    return 0 if stopped or server.started else 1


if __name__ == "__main__":
    sys.exit(main())
