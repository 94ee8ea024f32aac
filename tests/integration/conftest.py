"""What several integration tests start."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.adapters.settings import KafkaSettings, RedisSettings
from tests.integration.recommender_process import Process


@pytest.fixture
def system(kafka_settings: KafkaSettings, redis_settings: RedisSettings, tmp_path: Path) -> Iterator[Process]:
    """A recommender, not started yet, on topics and keys of this test alone."""
    system = Process(kafka_settings, redis_settings, tmp_path)
    yield system
    system.close()
