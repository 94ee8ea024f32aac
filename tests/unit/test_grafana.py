"""deploy/grafana against Grafana's own types, those of the version in .env: no field that it does not know."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import pytest
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from tests.compose_files import versions
from tests.servers import ROOT

BOARDS = sorted((ROOT / "deploy" / "grafana" / "dashboards").glob("*.json"))
OF_THE_DATA_SOURCE = {"step", "titleFormat", "textFormat", "tagKeys", "useValueForTime", "refId"}
"""What an annotation has for its data source alone: Prometheus' plugin reads it, the dashboard's schema is silent."""

plugins.register_default_plugins()


def lost(given: Any, kept: Any, at: str = "") -> Iterator[str]:
    """Places of ``given`` that are missing in ``kept``, or are something else there."""
    if isinstance(given, dict) and isinstance(kept, dict):
        for name, value in given.items():
            if name in kept:
                yield from lost(value, kept[name], f"{at}.{name}")
            elif not (at.startswith(".annotations.list[") and name in OF_THE_DATA_SOURCE):
                yield f"{at}.{name}"
    elif isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        for n, (one, other) in enumerate(zip(given, kept, strict=True)):
            yield from lost(one, other, f"{at}[{n}]")
    elif given != kept:
        yield at


def round_trip(board: dict[str, Any]) -> dict[str, Any]:
    """Read into Grafana's types and written again: what these do not know is gone."""
    return json.loads(JSONEncoder().encode(Dashboard.from_json(board)))


def test_the_types_are_those_of_the_version_that_runs():
    assert version("grafana-foundation-sdk").partition("!")[2] == versions()["GRAFANA_IMAGE"].rpartition(":")[2]


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.name)
def test_grafana_knows_every_field(path):
    board = json.loads(path.read_text())
    assert list(lost(board, round_trip(board))) == []


def test_a_field_that_it_does_not_know_is_found():
    board = json.loads(BOARDS[0].read_text())
    panel = next(panel for panel in board["panels"] if panel["type"] == "timeseries")
    panel["fieldConfig"]["defaults"]["units"] = "s"
    panel["options"]["legend"]["showLegends"] = True
    found = list(lost(board, round_trip(board)))
    assert sorted(place.rpartition(".")[2] for place in found) == ["showLegends", "units"]
