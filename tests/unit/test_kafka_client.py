"""What is put right in kafka-python."""

import threading
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.protocol.metadata import MetadataResponse
from kafka.protocol.schemas.fields.struct import StructField

import shared.adapters.kafka_client  # noqa: F401 - puts it right
from shared.adapters.kafka_client import connected
from shared.adapters.settings import KafkaSettings
from shared.core.errors import Unavailable
from tests.servers import free_port, kafka_threads, until


def test_threads_that_need_the_same_decoder_at_once_get_one_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    version = 1
    body = MetadataResponse(version=version, brokers=[], controller_id=7, topics=[]).encode(version=version)
    struct = MetadataResponse._struct
    emit = StructField.emit_decode_from
    first_inside, first_done = threading.Event(), threading.Event()

    def emit_slowly(self: StructField, *args: Any, **kwargs: Any) -> None:
        if self is struct and threading.current_thread().name == "first":
            first_inside.set()
            first_done.wait(0.2)  # the other thread begins
        elif self is struct:
            first_done.wait(5)  # the first has put back what it changed
        emit(self, *args, **kwargs)

    def decode() -> None:
        MetadataResponse.decode(body, version=version)
        first_done.set()

    monkeypatch.setattr(StructField, "emit_decode_from", emit_slowly)
    monkeypatch.setattr(struct, "_compiled_encoders", {})
    first = threading.Thread(target=decode, name="first")
    second = threading.Thread(target=decode, name="second")
    first.start()
    first_inside.wait()
    second.start()
    first.join()
    second.join()

    assert MetadataResponse.decode(body, version=version).controller_id == 7


@pytest.mark.parametrize("kind", [KafkaConsumer, KafkaProducer, KafkaAdminClient])
def test_of_a_client_that_found_no_broker_no_thread_stays_behind(kind: type) -> None:
    before = kafka_threads()
    settings = KafkaSettings(kafka_bootstrap_servers=f"127.0.0.1:{free_port()}")
    with pytest.raises(Unavailable, match="bootstrap"):
        connected(kind, settings, bootstrap_timeout_ms=300)
    until(lambda: not kafka_threads() - before, 10, "its threads have ended")
