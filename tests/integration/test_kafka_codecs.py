"""What producers compress can be read."""

from kafka import KafkaProducer

from shared.adapters.kafka_client import client_config
from shared.adapters.kafka_reader import KafkaReader
from shared.adapters.settings import KafkaSettings
from tests.servers import until

CODECS = ("gzip", "snappy", "lz4", "zstd")


def test_every_codec_can_be_read(kafka_settings: KafkaSettings) -> None:
    topic = kafka_settings.topic_interactions
    for codec in CODECS:
        producer = KafkaProducer(compression_type=codec, **client_config(kafka_settings))
        for _ in range(20):  # enough to be worth compressing
            producer.send(topic, codec.encode() * 100)
        producer.close()
    reader = KafkaReader(kafka_settings, topic, "codecs")
    read: list[bytes | None] = []

    def all_are_read() -> bool:
        read.extend(record.value for record in reader.poll(0.2, 500))
        return len(read) >= 20 * len(CODECS)

    try:
        until(all_are_read, what="the records")
    finally:
        reader.close()

    assert sorted(value or b"" for value in read) == sorted(codec.encode() * 100 for codec in CODECS * 20)
