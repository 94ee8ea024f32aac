"""What the stack runs, as data: one line a service."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from services.stack.settings import StackSettings

_LOCAL = "127.0.0.1"
# What these say is about somebody else's server: it must not reach the ones that we start ourselves.
_OF_OTHER_KAFKA = ("KAFKA_SECURITY_PROTOCOL", "KAFKA_SASL_USERNAME", "KAFKA_SASL_PASSWORD", "KAFKA_SASL_PASSWORD_FILE")
_OF_OTHER_REDIS = (
    "REDIS_USERNAME",
    "REDIS_PASSWORD",
    "REDIS_PASSWORD_FILE",
    "REDIS_CLUSTER",
    *(f"REDIS_SSL_{name}" for name in ("CA_CERTS", "CERTFILE", "KEYFILE", "CHECK_HOSTNAME")),
)


@dataclass(frozen=True)
class Service:
    """A service: ``python -m {module}``, its health on the port that ``port_variable`` tells it."""

    name: str
    module: str
    port_variable: str
    host_variable: str


SERVICES = (
    Service("consumer", "services.consumer", "CONSUMER_PORT", "CONSUMER_HOST"),
    Service("recommender", "services.recommender", "HTTP_PORT", "HTTP_HOST"),
    Service("retrainer", "services.retrainer", "RETRAINER_PORT", "RETRAINER_HOST"),
)
ENTRANCE = "recommender"  # whose address is the system's


@dataclass(frozen=True)
class Addresses:
    """Where everything is; ``ports`` is by service name."""

    kafka: str
    redis: str
    model_uri: str
    session_log_uri: str
    train_dir: str
    http_host: str
    ports: Mapping[str, int]
    kafka_is_ours: bool
    redis_is_ours: bool

    @property
    def http(self) -> str:
        """The recommender's address, as a client on this machine should write it."""
        return f"http://{reachable(self.http_host)}:{self.ports[ENTRANCE]}"


def reachable(host: str) -> str:
    """The host to connect to where a server listens on ``host``: a wildcard is no address."""
    return _LOCAL if host in ("0.0.0.0", "", "::") else host


def service_environment(base: Mapping[str, str], addresses: Addresses, settings: StackSettings) -> dict[str, str]:
    """The environment of every service: the stack's own, with the addresses of this stack."""
    # A killed consumer's partitions are free after the session timeout: the least that Kafka allows by default.
    defaults = {"LOG_FORMAT": "text", "CONSUMER_HOST": _LOCAL, "CONSUMER_SESSION_TIMEOUT_MS": "6000"}
    # Here one retrainer decides: after a crash it need not wait long for itself.
    defaults |= {"RETRAINER_HOST": _LOCAL, "RETRAINER_LEASE_S": "5", "TRAIN_DIR": addresses.train_dir}
    environment = {**defaults, **base}
    if not addresses.kafka_is_ours:
        # Known by name, a consumer that was killed and started again has its partitions back at once. The name is
        # this stack's alone: another on the same broker must not be taken for it. The mock broker has no such names.
        environment.setdefault("CONSUMER_INSTANCE_ID", f"stack-{uuid.uuid4().hex}")
    if addresses.kafka_is_ours:
        for name in _OF_OTHER_KAFKA:
            environment.pop(name, None)
        environment["KAFKA_API_VERSION"] = "2.0"  # the mock cluster answers no newer version negotiation
    if addresses.redis_is_ours:
        for name in _OF_OTHER_REDIS:
            environment.pop(name, None)
    environment.pop("REDIS_URL_FILE", None)  # read already: REDIS_URL below says the same
    environment.update(
        KAFKA_BOOTSTRAP_SERVERS=addresses.kafka,
        REDIS_URL=addresses.redis,
        MODEL_URI=addresses.model_uri,
        SESSION_LOG_URI=addresses.session_log_uri,
        HTTP_HOST=settings.http_host,
        PYTHONUNBUFFERED="1",  # a log that ends where the process ended
    )
    for service in SERVICES:
        environment[service.port_variable] = str(addresses.ports[service.name])
    return environment
