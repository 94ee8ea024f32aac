"""What all our Kafka clients share: how to connect, how errors are told, and questions about topics."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from kafka import KafkaAdminClient
from kafka import errors as kafka_errors
from kafka.net.compat import KafkaNetClient
from kafka.protocol.schemas.fields.struct import StructField

from shared.adapters.kafka_handshake import check
from shared.adapters.settings import KafkaSettings
from shared.core.errors import TopicMissing, Unavailable

T = TypeVar("T")


_compiling = threading.RLock()


def _one_thread_at_a_time(compiled: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(compiled)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        with _compiling:
            return compiled(*args, **kwargs)

    return guarded


# kafka-python 3.0.12 compiles the reader of each kind of answer when it is first needed, and keeps it for the process.
# Meanwhile it changes what all threads share: two clients that compile the same one at once may keep a reader that
# raises on every answer, and from then on all clients of the process wait for answers that never come.
StructField.compiled_decode_from = _one_thread_at_a_time(StructField.compiled_decode_from)


def _client_that_makes_no_topics(**configs: Any) -> KafkaNetClient:
    """kafka-python 3.0.12 loses its setting allow_auto_create_topics on the way to the request for metadata.

    A topic that an operator deletes would be back at once, with the broker's number of partitions.
    """
    client = KafkaNetClient(**configs)
    client.cluster.config["allow_auto_create_topics"] = False
    return client


def client_config(settings: KafkaSettings) -> dict[str, Any]:
    """What every kafka-python client is told: where the broker is, and who we are."""
    config: dict[str, Any] = {
        "bootstrap_servers": [s.strip() for s in settings.kafka_bootstrap_servers.split(",")],
        "client_id": settings.kafka_client_id,
        "security_protocol": settings.kafka_security_protocol,
        "reconnect_backoff_max_ms": 2000,
    }
    if settings.kafka_api_version:
        # The embedded broker: topics come into being by being asked for.
        config["api_version"] = tuple(int(part) for part in settings.kafka_api_version.split("."))
    else:
        config["kafka_client"] = _client_that_makes_no_topics
    if settings.kafka_security_protocol.startswith("SASL"):
        config["sasl_mechanism"] = settings.kafka_sasl_mechanism
        config["sasl_plain_username"] = settings.kafka_sasl_username
        config["sasl_plain_password"] = settings.kafka_sasl_password.get_secret_value()
    if settings.kafka_security_protocol.endswith("SSL"):
        config["ssl_check_hostname"] = settings.kafka_ssl_check_hostname
        for name in ("cafile", "certfile", "keyfile"):
            config[f"ssl_{name}"] = getattr(settings, f"kafka_ssl_{name}") or None
        # Never None: OpenSSL would ask at the terminal for the password of a key that has one.
        config["ssl_password"] = settings.kafka_ssl_key_password.get_secret_value()
    return config


def connected(kind: Callable[..., T], settings: KafkaSettings, **options: Any) -> T:
    """A client of kafka-python: KafkaConsumer, KafkaProducer or KafkaAdminClient, with these options of its own.

    TLS and SASL are tried first: with wrong ones kafka-python waits, and says nothing of why. Where there is no client
    to be had, nothing of it stays behind: kafka-python 3.0.12 would leave a thread that looks for the broker for ever.
    Raises Unavailable.
    """
    if not settings.kafka_api_version:
        check(settings)
    config = {"bootstrap_timeout_ms": _BOOTSTRAP_MS, **client_config(settings), **options}
    network = config.pop("kafka_client", KafkaNetClient)
    begun: list[KafkaNetClient] = []

    def begin(**configs: Any) -> KafkaNetClient:
        begun.append(network(**configs))
        return begun[-1]

    try:
        return kind(kafka_client=begin, **config)
    except BaseException as error:
        for client in begun:
            abandon(client)
        if isinstance(error, (kafka_errors.KafkaError, OSError)):
            raise unavailable(settings, error) from error
        raise


def abandon(client: Any) -> None:
    """Close a client that may hang, if there is one: without waiting for it."""
    if client is not None:
        threading.Thread(target=client.close, name="kafka-close", daemon=True).start()


_BOOTSTRAP_MS = 7000
"""Clients that are made within ``bounded`` give up before it does; and a service that is told to stop while Kafka is
away ends within the time that orchestrators allow."""
_SILENT = (TimeoutError, kafka_errors.KafkaTimeoutError, kafka_errors.KafkaConnectionError)


def unavailable(settings: KafkaSettings, error: Exception) -> Unavailable:
    """The error of ours that names the broker, and what is wrong with TLS or SASL if that is the reason."""
    if isinstance(error, _SILENT) and settings.kafka_security_protocol != "PLAINTEXT":
        try:
            check(settings)
        except Unavailable as reason:
            return reason
    return Unavailable(f"Kafka at {settings.kafka_bootstrap_servers}: {type(error).__name__}: {error}")


def bounded(settings: KafkaSettings, work: Callable[[], T], seconds: float = 8.0) -> T:
    """What ``work`` gives, in a thread of its own.

    kafka-python 3.0.12 has calls without a time limit. Raises Unavailable after ``seconds``; the thread is left
    behind, and whoever called must begin with a new client.
    """
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:  # noqa: BLE001 - handed to the caller, whatever it is
            outcome.set_exception(error)

    threading.Thread(target=run, name="kafka-call", daemon=True).start()
    try:
        return outcome.result(seconds)
    except TimeoutError as error:
        raise unavailable(settings, error) from error


class TopicAdmin:
    """Questions about topics, asked of the broker now."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._client: KafkaAdminClient | None = None
        self._cluster = ""

    def _admin(self) -> KafkaAdminClient:
        if self._client is None:
            self._client = connected(KafkaAdminClient, self._settings, request_timeout_ms=5000)
            self._cluster = str(self._client.describe_cluster().get("cluster_id", ""))
        return self._client

    def _give_up(self) -> None:
        """It hangs."""
        hangs, self._client = self._client, None
        abandon(hangs)

    def describe(self, topic: str) -> tuple[str, list[int]]:
        """(the name of the topic's present life, its partitions). Raises TopicMissing, Unavailable."""
        try:
            answer = bounded(self._settings, lambda: self._admin().describe_topics([topic])[0])
        except Unavailable:
            self._give_up()
            raise
        except kafka_errors.UnknownTopicOrPartitionError as error:
            raise self._missing(topic) from error
        except (kafka_errors.KafkaError, OSError) as error:
            self.close()
            raise unavailable(self._settings, error) from error
        if answer["error_code"]:
            if answer["error_code"] == kafka_errors.UnknownTopicOrPartitionError.errno:
                raise self._missing(topic)
            raise unavailable(self._settings, kafka_errors.for_code(answer["error_code"])())
        # Without an id it ends with the slash: see has_id.
        life = f"{self._cluster}/{answer.get('topic_id') or ''}"
        return life, sorted(p["partition_index"] for p in answer["partitions"])

    def unassigned(self, group: str, topic: str) -> set[int]:
        """Partitions that no member of the group owns; none while it rebalances. Raises as ``describe``."""
        _, partitions = self.describe(topic)
        try:
            described = bounded(self._settings, lambda: self._admin().describe_groups([group])[group])
        except Unavailable:
            self._give_up()
            raise
        except (kafka_errors.KafkaError, OSError, KeyError) as error:
            self.close()
            raise unavailable(self._settings, error) from error
        if described.get("group_state") in ("PreparingRebalance", "CompletingRebalance"):
            return set()
        free = set(partitions)
        for member in described["members"]:
            for owned in (member.get("member_assignment") or {}).get("assigned_partitions", ()):
                if owned["topic"] == topic:
                    free -= set(owned["partitions"])
        return free

    def _missing(self, topic: str) -> TopicMissing:
        return TopicMissing(f"Kafka at {self._settings.kafka_bootstrap_servers} has no topic {topic!r}")

    def close(self) -> None:
        """Close the connection; the next question opens another."""
        if self._client is not None:
            self._client.close()
            self._client = None
