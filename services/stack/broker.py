"""The embedded broker: librdkafka's mock cluster in a process of its own, for one machine.

    python -m services.stack.broker      # prints {"kafka": "127.0.0.1:PORT"}, then serves until it is ended

It speaks the Kafka protocol well enough for the whole system, with these limits: one node, its own choice of port,
4 partitions a topic, and everything in memory: about 5 MB a partition, the oldest messages go first, and all of it
goes with the process. kafka-python needs ``api_version=(2, 0)`` with it (KAFKA_API_VERSION=2.0), and topics are made
by asking for their metadata, since the mock has no CreateTopics.
"""

from __future__ import annotations

import json
import signal
import sys

from shared.adapters.settings import KafkaSettings

_METADATA_S = 10.0


def topic_names(settings: KafkaSettings) -> list[str]:
    """All topics of the system: every setting whose name starts with ``topic_``."""
    return [getattr(settings, name) for name in type(settings).model_fields if name.startswith("topic_")]


def main() -> None:
    """Serve until a signal ends the process; exits 1 when confluent-kafka is missing."""
    try:
        from confluent_kafka import Producer
    except ImportError:
        sys.exit("the embedded broker needs confluent-kafka: pip install 'driftwood[local]'")
    host = Producer({"test.mock.num.brokers": 1, "log_level": 3})
    brokers = host.list_topics(timeout=_METADATA_S).brokers
    for topic in topic_names(KafkaSettings()):
        host.list_topics(topic, timeout=_METADATA_S)
    broker = next(iter(brokers.values()))
    print(json.dumps({"kafka": f"{broker.host}:{broker.port}"}), flush=True)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    while True:  # the cluster lives in librdkafka's threads, as long as ``host`` does
        signal.pause()


if __name__ == "__main__":
    main()
