"""Starts the recommender: ``python -m services.recommender``, settings from the environment."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Sequence

import torch
import uvicorn
from pydantic import ValidationError

from services.recommender.app import Parts, build_app
from services.recommender.batch import BatchRanker
from services.recommender.cache import RankingCache
from services.recommender.emitter import Emitter, EmitterOptions
from services.recommender.forget import Forgetter, TopicNames
from services.recommender.metrics import RecommenderMetrics
from services.recommender.new_items import Folding
from services.recommender.outbox import Outbox
from services.recommender.popular import TrendingView
from services.recommender.popular_now import PopularNow
from services.recommender.queries import Ids
from services.recommender.ranker import Ranker
from services.recommender.readiness import Readiness
from services.recommender.recommendations import Recommendations
from services.recommender.serving import Serving
from services.recommender.topics import Topics
from shared.adapters.kafka import KafkaPublisher
from shared.adapters.kafka_client import TopicAdmin
from shared.adapters.kafka_reader import KafkaReader, OffsetReader, ensure_topics
from shared.adapters.logs import configure_logging
from shared.adapters.model_watch import ModelWatch
from shared.adapters.redis_store import RedisStateStore
from shared.adapters.registry import FileModelRegistry
from shared.adapters.settings import (
    ConsumerSettings,
    EventSettings,
    KafkaSettings,
    LoggingSettings,
    RecommenderSettings,
    RedisSettings,
    RegistrySettings,
    listed,
)
from shared.core.progress import Progress
from shared.core.trending import Trending
from shared.model.inference import InferenceModel

log = logging.getLogger("driftwood.recommender")


class System:
    """Everything that runs beside the HTTP server, and the parts that the server is built from."""

    def __init__(
        self,
        settings: RecommenderSettings,
        kafka: KafkaSettings,
        redis: RedisSettings,
        registry_settings: RegistrySettings,
        events: EventSettings,
        trending: ConsumerSettings,
    ) -> None:
        self.metrics = RecommenderMetrics()
        # A request waits no longer than its deadline, so neither does a question to Redis.
        redis_timeout_s = min(redis.redis_timeout_s, settings.rank_deadline_ms / 1000)
        self.store = RedisStateStore(redis.model_copy(update={"redis_timeout_s": redis_timeout_s}))
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
            Forgetter(self.store, self.topics, self.outbox, names),
            registry,
            lambda: self.watch.problem,
            self.readiness,
            events.rules(),
            kafka.topic_interactions,
            self.metrics,
            listed(settings.http_api_keys.get_secret_value()),
            settings.http_max_body_bytes,
        )

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
        return {
            "model": serving.model.version if serving else "none published yet: rankings are trending",
            "model_problem": self.watch.problem,
            "emission": (self.emitter.problem or "ok") if self.emits else "off",
        }

    def start(self) -> None:
        """Start all threads; the model is loaded when this returns, if there is one."""
        self.watch.start()
        self.ranker.start()
        self.trending.start()
        self.outbox.start()
        if self.emits:
            self.emitter.start()

    def stop(self) -> None:
        """Finish what was begun, in the order in which one needs the other."""
        if self.emits:
            self.emitter.stop()
        self.outbox.stop()
        self.trending.stop()
        self.watch.stop()
        self.ranker.stop()
        self.readiness.close()
        self.topics.close()
        self.probes.close()
        self.store.close()


def _load(registry: FileModelRegistry, version: str) -> InferenceModel:
    stored = registry.load(version)
    return InferenceModel(version, stored.manifest.fingerprint, stored.items, stored.weights)


def _server(system: System, settings: RecommenderSettings) -> uvicorn.Server:
    return uvicorn.Server(
        uvicorn.Config(
            build_app(system.parts),
            host=settings.http_host,
            port=settings.http_port,
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            date_header=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=10,
        )
    )


def main(arguments: Sequence[str] = ()) -> int:
    """Run until SIGTERM or SIGINT; the exit code."""
    try:
        settings, kafka, redis = RecommenderSettings(), KafkaSettings(), RedisSettings()
        registry, events, trending = RegistrySettings(), EventSettings(), ConsumerSettings()
        configure_logging(LoggingSettings())
    except ValidationError as error:
        print(f"settings: {error}", file=sys.stderr)  # noqa: T201 - logging is not set up yet
        return 2
    torch.set_num_threads(settings.torch_threads)
    # Threads of the server, the ranker and the emitter take turns, several times in each batch: by default each waits
    # up to 5 ms for its turn while another computes.
    sys.setswitchinterval(0.00005)
    system = System(settings, kafka, redis, registry, events, trending)
    server = _server(system, settings)
    # uvicorn raises the signal that ended it once more when it is done: then ours only notes it, and the rest stops.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: log.info("stopping", extra={"signal": received}))
    system.start()
    log.info("recommender starts", extra={"host": settings.http_host, "port": settings.http_port})
    server.run()
    system.stop()
    log.info("recommender stopped")
    return 0 if server.started else 1


if __name__ == "__main__":
    sys.exit(main())
