"""Starts the consumer: ``python -m services.consumer``, settings from the environment."""

from __future__ import annotations

import gc
import logging
import signal
import sys
import threading
from collections.abc import Callable
from typing import TypeVar

import torch
from pydantic import ValidationError

from services.consumer.batch import BatchProcessor, Topics
from services.consumer.engagement import Engagement
from services.consumer.metrics import ConsumerMetrics
from services.consumer.offers import OfferBook
from services.consumer.partitions import Partitions
from services.consumer.sampling import SampleRate
from services.consumer.service import ConsumerService
from services.consumer.sweep import Sweep
from shared.adapters.health import HealthServer
from shared.adapters.kafka import KafkaInteractionSource, KafkaPublisher, RenewedPublisher
from shared.adapters.kafka_reader import ensure_topics
from shared.adapters.logs import configure_logging
from shared.adapters.model_watch import ModelWatch
from shared.adapters.registry import FileModelRegistry
from shared.adapters.settings import (
    ConsumerSettings,
    EngagementSettings,
    EventSettings,
    KafkaSettings,
    LoggingSettings,
    RedisSettings,
    RegistrySettings,
)
from shared.adapters.stalls import end_on_stall
from shared.adapters.state_stores import state_store
from shared.core.errors import SettingsInvalid, Unavailable
from shared.model.inference import InferenceModel

log = logging.getLogger("driftwood.consumer")

T = TypeVar("T")


class _Status:
    """What /readyz says, from before the first connection on."""

    def __init__(self) -> None:
        self.starting: str | None = "starting"
        self.service: ConsumerService | None = None
        self.watch: ModelWatch | None = None

    def ready(self) -> tuple[bool, dict[str, object]]:
        problem = self.starting if self.service is None else self.service.problem
        model = self.watch.current if self.watch is not None else None
        return problem is None, {
            "stream": problem or "ok",
            "model": (self.watch.problem if self.watch else None) or (model.version if model else "none published yet"),
        }


def _patiently(what: Callable[[], T], status: _Status, stop: threading.Event) -> T | None:
    """Try until it works; None when told to stop."""
    pause = 0.2
    while not stop.is_set():
        try:
            return what()
        except Unavailable as error:
            status.starting = str(error)
            log.error("waiting: %s; trying again in %.1f s", error, pause)
            stop.wait(pause)
            pause = min(2 * pause, 5.0)
    return None


def main() -> int:
    """Run until SIGTERM or SIGINT; the exit code."""
    try:
        kafka, redis, registry_settings = KafkaSettings(), RedisSettings(), RegistrySettings()
        consumer, events, logging_settings = ConsumerSettings(), EventSettings(), LoggingSettings()
        engaging = EngagementSettings()
        store = state_store(redis)
    except (ValidationError, SettingsInvalid) as error:
        print(f"settings: {error}", file=sys.stderr)  # noqa: T201 - logging is not set up yet
        return 2
    configure_logging(logging_settings)
    torch.set_num_threads(consumer.torch_threads)
    # The polling thread and the batch thread take turns; the default of 5 ms makes each wait long for the other.
    sys.setswitchinterval(0.001)
    # A batch holds tens of thousands of short-lived objects without cycles: collecting at every 700 finds none.
    gc.set_threshold(100_000, 20, 50)
    stop, status, metrics = threading.Event(), _Status(), ConsumerMetrics()

    def on_signal(number: int, _frame: object) -> None:
        log.info("stopping", extra={"signal": signal.Signals(number).name})
        stop.set()
        if status.service is not None:
            status.service.stop()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    health = HealthServer(consumer.consumer_host, consumer.consumer_port, status.ready)
    health.start()
    log.info("consumer starts", extra={"kafka": kafka.kafka_bootstrap_servers, "port": health.port})

    registry = FileModelRegistry(registry_settings.model_uri)

    def load(version: str) -> InferenceModel:
        model = registry.load(version)
        return InferenceModel(version, model.manifest.fingerprint, model.items, model.weights)

    def adopted(model: InferenceModel) -> None:
        metrics.model.clear()
        metrics.model.labels("consumer", model.version).set(1)

    status.watch = ModelWatch(registry.current, load, registry_settings.model_poll_s, adopted)
    status.watch.start()
    if kafka.kafka_create_topics:
        _patiently(lambda: ensure_topics(kafka), status, stop)
    publisher = RenewedPublisher(lambda: KafkaPublisher(kafka))
    source = _patiently(lambda: KafkaInteractionSource(kafka, consumer), status, stop)
    if source is not None:
        rate = SampleRate(engaging.engagement_max_per_s, engaging.engagement_cpu_share)
        offers = OfferBook(
            consumer.trending_half_life_s,
            consumer.fold_in_min,
            consumer.fold_in_items,
            consumer.popularity_half_life_s,
            consumer.trending_items,
            consumer.popularity_refresh_s,
            consumer.refine_items,
        )
        engagement = Engagement(rate, kafka.topic_engagement, metrics, offers)
        engagement.start()
        batches = BatchProcessor(
            store,
            publisher,
            lambda: status.watch.current if status.watch else None,
            events.rules(),
            Topics(kafka.topic_state_updates, kafka.topic_dlq),
            consumer.recent_items,
            metrics,
            engagement,
            consumer.dismiss_s,
            fold_in=consumer.fold_in_items > 0,
        )
        partitions = Partitions(
            source,
            store,
            consumer.trending_half_life_s,
            consumer.trending_items,
            consumer.fold_in_items,
            consumer.popularity_half_life_s,
            consumer.refine_items,
        )
        status.service = ConsumerService(
            source,
            partitions,
            batches,
            publisher,
            metrics,
            consumer.consumer_max_batch,
            consumer.consumer_commit_ms / 1000,
        )
        sweep = Sweep(
            state_store(redis),
            lambda: KafkaPublisher(kafka),
            kafka.topic_state_updates,
            lambda: status.watch.current if status.watch else None,
            lambda: partitions.owned,
            consumer.sweep_delay_s,
            consumer.sweep_users_per_s,
            metrics,
        )
        sweep.start()
        if stop.is_set():
            status.service.stop()
        service = status.service
        end_on_stall(lambda: service.turned_at, consumer.consumer_stall_s, "CONSUMER_STALL_S")
        status.service.run()
        sweep.stop()
        engagement.stop()
        publisher.close()
    status.watch.stop()
    store.close()
    health.stop()
    log.info("consumer stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
