"""What a storage raises, whatever package it comes from, is an outage; what is our own mistake is not."""

from __future__ import annotations

import json

import pytest

from shared.adapters.durable import storage_trouble
from shared.core.errors import ModelDamaged, Unavailable


class HttpError(Exception):
    """As that of gcsfs: no OSError."""


HttpError.__module__ = "gcsfs.retry"


class Derived(HttpError):
    """Of somebody else, but one of theirs."""


@pytest.mark.parametrize("error", [HttpError("503"), Derived("503"), OSError("reset"), TimeoutError("slow")])
def test_failures_of_a_storage_are_outages(error: Exception) -> None:
    with (
        pytest.raises(Unavailable, match=f"model registry gs://b/m: {error}"),
        storage_trouble("model registry gs://b/m"),
    ):
        raise error


@pytest.mark.parametrize("error", [ModelDamaged("checksum"), KeyError("x"), json.JSONDecodeError("bad", "", 0)])
def test_others_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error)), storage_trouble("model registry gs://b/m"):
        raise error
