"""Settings, read from the environment: one frozen class per system. Every name is the variable's name in upper case."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Literal

from pydantic import Field, SecretStr, field_validator

from shared.adapters.settings_base import Settings
from shared.core.events import EventRules


def listed(text: str) -> tuple[str, ...]:
    """The parts of a comma-separated setting, without the blanks around them."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


class KafkaSettings(Settings):
    """How to reach the broker and what the topics are called."""

    kafka_bootstrap_servers: str = "localhost:9092"
    kafka_api_version: str = Field("", description='"2.0" for the embedded broker; empty: negotiate')
    kafka_client_id: str = "driftwood"
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    kafka_sasl_username: str = ""
    kafka_sasl_password: SecretStr = Field(SecretStr(""), description="or `KAFKA_SASL_PASSWORD_FILE`")
    kafka_ssl_cafile: str = Field("", description="PEM; empty: the authorities that the system trusts")
    kafka_ssl_certfile: str = Field("", description="PEM; our certificate, where the broker asks for one")
    kafka_ssl_keyfile: str = Field("", description="PEM; its key")
    kafka_ssl_key_password: SecretStr = Field(
        SecretStr(""), description="of that key; or `KAFKA_SSL_KEY_PASSWORD_FILE`"
    )
    kafka_ssl_check_hostname: bool = Field(True, description="the broker's certificate must name its host")
    kafka_create_topics: bool = Field(False, description="create missing topics at start")
    kafka_partitions: int = Field(4, ge=1, description="of topics that we create")
    kafka_replication: int = Field(1, ge=1, description="of topics that we create")
    kafka_max_message_bytes: int = Field(8 << 20, ge=1 << 20, description="bytes; of the topics that we create")
    topic_interactions: str = "interactions"
    topic_recommendations: str = "recommendations"
    topic_engagement: str = "engagement"
    topic_state_updates: str = "state-updates"
    topic_dlq: str = "interactions.dlq"
    topic_forgets: str = "forgets"


class RedisSettings(Settings):
    """How to reach Redis and what our keys start with."""

    redis_url: SecretStr = Field(
        SecretStr("redis://localhost:6379/0"), description="rediss:// for TLS; or `REDIS_URL_FILE`"
    )
    redis_username: str = Field("", description="of an ACL user")
    redis_password: SecretStr = Field(SecretStr(""), description="or `REDIS_PASSWORD_FILE`")
    redis_ssl_ca_certs: str = Field("", description="PEM; empty: the authorities that the system trusts")
    redis_ssl_certfile: str = Field("", description="PEM; our certificate, where Redis asks for one")
    redis_ssl_keyfile: str = Field("", description="PEM; its key")
    redis_ssl_check_hostname: bool = Field(True, description="Redis' certificate must name its host")
    redis_cluster: bool = Field(False, description="REDIS_URL is a server of a Redis Cluster")
    redis_prefix: str = Field("dw:", max_length=64)
    redis_timeout_s: float = Field(5.0, gt=0)
    user_ttl_s: int = Field(90 * 86400, ge=0, description="a state not touched for so long goes; 0: never")


class RegistrySettings(Settings):
    """Where models live."""

    model_uri: str = Field("./models", description="a directory or an fsspec URL")
    model_poll_s: float = Field(1.0, gt=0, description="how often services look for a new version")


class EventSettings(Settings):
    """What counts as a good interaction, and which advance the state."""

    event_max_bytes: int = Field(65536, ge=256)
    event_max_future_s: int = Field(86400, ge=0, description="a timestamp further ahead is refused")
    ignore_event_types: str = Field("impression", description="comma-separated; these do not advance the state")
    advance_event_types: str = Field("", description="comma-separated; if set, only these advance the state")

    dismiss_event_types: str = Field(
        "dismiss", description="comma-separated; the user wants this item no more: never advances the state"
    )
    impression_event_types: str = Field("impression", description="comma-separated; counted as shown in engagement")

    def rules(self) -> EventRules:
        """These settings as the rules that events are checked by."""
        ignored, advancing = frozenset(listed(self.ignore_event_types)), frozenset(listed(self.advance_event_types))
        dismiss, shown = frozenset(listed(self.dismiss_event_types)), frozenset(listed(self.impression_event_types))
        return EventRules(self.event_max_bytes, self.event_max_future_s * 1000, ignored, advancing, dismiss, shown)


class ConsumerSettings(Settings):
    """The consumer: event to state."""

    consumer_group: str = "driftwood-consumer"
    consumer_instance_id: str = Field("", description="static membership (KIP-345); empty: dynamic")
    consumer_max_batch: int = Field(4096, ge=1, description="events in one batch, at most")
    consumer_linger_ms: int = Field(10, ge=0, description="how long a poll waits for a fuller batch")
    consumer_commit_ms: int = Field(1000, ge=1, description="how often progress is made durable and committed")
    consumer_stall_s: float = Field(60.0, gt=0, description="a loop that hangs so long ends the process")
    consumer_session_timeout_ms: int = Field(10_000, ge=1000)
    consumer_host: str = "0.0.0.0"
    consumer_port: int = Field(8081, ge=0, le=65535, description="health and metrics")
    torch_threads: int = Field(1, ge=1)
    recent_items: int = Field(32, ge=1, le=254)
    dismiss_s: int = Field(7 * 86400, ge=1, description="how long a dismissed item is not offered to that user")
    trending_half_life_s: float = Field(6 * 3600.0, gt=0)
    trending_items: int = Field(1000, ge=1, description="most popular items kept per partition")
    popularity_half_life_s: float = Field(
        1200.0,
        ge=0,
        description="of what is popular now, a bias on all rankings; 0: none",
    )
    popularity_refresh_s: float = Field(10.0, gt=0, description="how often rankings follow what is popular now")
    fold_in_min: int = Field(5, ge=1, description="times chosen, before a new item is ranked by the model")
    fold_in_items: int = Field(200, ge=0, description="new items ranked, and kept per partition, at most; 0: none")
    refine_items: int = Field(
        100,
        ge=0,
        description="of the items chosen most now, those whose rows follow who chooses them, at most, and kept per "
        "partition; 0, or POPULARITY_HALF_LIFE_S 0, or no sampled engagement: none",
    )
    sweep_delay_s: float = Field(10.0, ge=0, description="from a new model to the sweep over old states")
    sweep_users_per_s: int = Field(500, ge=1, description="states that the sweep rebuilds, at most")


class EngagementSettings(Settings):
    """Scoring of what users do against the rankings held for them, in the consumer."""

    engagement_max_per_s: float = Field(
        500.0, ge=0, description="events scored in a second, at most; the rest is sampled"
    )
    engagement_cpu_share: float = Field(0.03, gt=0, le=1, description="of one core, at most, for scoring")


class HttpSettings(Settings):
    """The recommender's HTTP server: where it listens, who may call, and how much."""

    http_host: str = "0.0.0.0"
    http_port: int = Field(8080, ge=0, le=65535)
    http_api_keys: SecretStr = Field(SecretStr(""), description="comma-separated; none, and no file: open to all")
    http_api_keys_file: str = Field("", description="one `NAME SCOPES KEY` a line; changes count within a second")
    http_public_metrics: bool = Field(True, description="/metrics needs no key")
    http_rate_per_s: float = Field(0.0, ge=0, description="requests of one key, or address without one; 0: any number")
    http_rate_burst: int = Field(0, ge=0, description="of them at once; 0: those of two seconds")
    http_trusted_proxies: str = Field(
        "", description="addresses or networks, comma-separated, whose X-Forwarded-For is believed"
    )
    http_max_requests: int = Field(1000, ge=1, description="at the same time; more get 503")
    http_max_connections: int = Field(2000, ge=1, description="at the same time; more get 503")
    http_max_body_bytes: int = Field(4 << 20, ge=1024, description="of a request; more gets 413")
    http_max_header_bytes: int = Field(64 << 10, ge=1024, description="of a request; more get 431")
    http_body_timeout_s: float = Field(20.0, gt=0, description="until a body is whole; then 408")
    http_header_timeout_s: float = Field(10.0, gt=0, description="until the head of a request is whole; then 408")

    @field_validator("http_trusted_proxies")
    @classmethod
    def _are_addresses(cls, text: str) -> str:
        for part in listed(text):
            ip_network(part)  # a network with bits set behind its mask would match nobody, and is refused here
        return text


class RecommenderSettings(Settings):
    """The recommender: state to ranking, over HTTP and to a topic."""

    recommender_group: str = "driftwood-recommender"
    rank_max_batch: int = Field(32, ge=1, description="requests ranked together, at most")
    rank_deadline_ms: int = Field(1000, ge=10, description="a ranking that takes longer is refused with 503")
    http_kafka_timeout_ms: int = Field(5000, ge=10, description="interactions not acknowledged by then get 503")
    rank_cache_users: int = Field(100_000, ge=0, description="rankings kept in memory")
    emit_topic: bool = Field(True, description="publish rankings to the recommendations topic")
    emit_k: int = Field(20, ge=1, le=1000)
    emit_linger_ms: int = Field(100, ge=0, description="changes of one user within this time give one message")
    trending_refresh_ms: int = Field(1000, ge=10)
    console: bool = Field(True, description="the page at /, and what it reads; false: / leads to /docs")
    torch_threads: int = Field(1, ge=1)


class RetrainerSettings(Settings):
    """The retrainer: log to model."""

    session_log_uri: str = Field("./session-log", description="a directory or an fsspec URL")
    session_log_group: str = "driftwood-session-log"
    session_log_flush_s: float = Field(10.0, gt=0, description="events wait so long in memory, at most, to be logged")
    session_log_flush_events: int = Field(50_000, ge=1, description="events in memory, at most, about 0.6 kB each")
    session_log_upkeep_s: float = Field(60.0, gt=0, description="how often files are merged and old ones removed")
    session_log_max_days: int = Field(90, ge=0, le=36_500, description="events that arrived longer ago go; 0: never")
    session_log_max_bytes: int = Field(20 << 30, ge=0, description="the oldest files go beyond that size; 0: no limit")
    retrainer_host: str = "0.0.0.0"
    retrainer_port: int = Field(8082, ge=0, le=65535, description="health and metrics")
    retrainer_stall_s: float = Field(120.0, gt=0, description="a loop that hangs so long ends the process")
    retrainer_lease_s: float = Field(
        15.0, ge=1, description="of several retrainers one decides; after a silence so long, another does"
    )


class DriftSettings(Settings):
    """When the retrainer trains, and when it takes a promotion back."""

    train_auto: bool = Field(True, description="false: alarms are raised, and nothing is trained by itself")
    engagement_group: str = "driftwood-retrainer-engagement"
    drift_min_events: int = Field(1000, ge=32, description="scored events of a version before it can alarm")
    drift_cooldown_s: float = Field(3 * 3600.0, ge=0, description="between two alarms; doubles while nothing helps")
    drift_delta: float = Field(0.001, gt=0, lt=1, description="of ADWIN: smaller is surer and later")
    drift_min_fall: float = Field(0.15, ge=0, lt=1, description="share of the hit rate lost, at least, for an alarm")
    model_max_age_s: float = Field(
        7 * 86400.0, ge=0, description="an older model is trained anew; 0: never for its age"
    )
    model_keep: int = Field(
        10, ge=0, description="newest versions kept, beside those in use or needed for a rollback; 0: all"
    )
    rollback_events: int = Field(
        2000, ge=100, le=60_000, description="scored events after a promotion by which it is judged"
    )
    rollback_p: float = Field(
        0.01, gt=0, lt=1, description="chance, at most, that a model as good as the old one is rolled back"
    )


class TrainSettings(Settings):
    """A training by the retrainer, from the session log."""

    train_window_events: int = Field(500_000, ge=1000, description="newest events of the session log read, at most")
    train_min_sessions: int = Field(300, ge=1, description="sessions of two events or more, below which none begins")
    train_budget_s: float = Field(600.0, ge=0, description="seconds, evaluation included; 0: no limit")
    train_memory_mb: int = Field(2048, ge=0, description="the window shrinks to fit; 0: no limit")
    train_dir: str = Field("./training", description="checkpoints, gone when the training has ended")
    train_width: int = Field(0, ge=0, le=4096, description="hidden units; 0: the champion's, 128 for the first model")
    train_epochs: int = Field(0, ge=0, description="at most; 0: 5 from a champion on, for the first model by its log")
    train_seed: int = Field(1, ge=0)
    train_threads: int = Field(1, ge=1, description="of torch; more are slower on a busy machine")
    train_processes: int = Field(1, ge=1, description="that train together, started by torchrun, on this machine")
    train_since_ms: int = Field(0, ge=0, description="when taste began to change; the gate asks about later events")
    gate_margin: float = Field(0.005, ge=0, description="relative gain in Recall@20 over the champion, at least")
    gate_confidence: float = Field(0.95, ge=0.5, le=1, description="of the paired bootstrap, by session")
    gate_events: int = Field(20_000, ge=100, description="newest events asked about, at most")


class LoggingSettings(Settings):
    """Logs: JSON lines for machines, or text for people."""

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["json", "text"] = "json"
