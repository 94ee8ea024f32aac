"""deploy/grafana: whole, known by fixed names, and nothing that happened is left out at any zoom."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import yaml

from tests.promql import gaps, parse
from tests.tools import tool
from tests.unit.test_monitoring import GRAFANA, PROMTOOL, dashboards, run

UIDS = {"driftwood-stream", "driftwood-serving", "driftwood-learning"}
SCRAPE_S = 15
"""The longest pause between two samples: that of deploy/kubernetes (ServiceMonitor)."""
STEPS_S = (15, 30, 120, 7200)
"""Between the points that are asked for, from zoomed in to a week."""


def drawn() -> Iterator[tuple[str, str, int, bool]]:
    """(where, expression, its least step in seconds, whether an annotation) of all that is drawn over time."""
    for name, board in dashboards().items():
        for panel in board["panels"]:
            for target in panel.get("targets", ()):
                if target["range"]:
                    yield f"{name}: {panel['title']}", target["expr"], _seconds(target.get("interval", "5s")), False
        for note in board["annotations"]["list"]:
            yield f"{name}: {note['name']}", note["expr"], _seconds(note["step"]), True


def _seconds(text: str) -> int:
    return int(re.fullmatch(r"(\d+)s", text)[1])  # type: ignore[index]


def at_step(expression: str, step_s: int, least_s: int, annotation: bool) -> str:
    """As Grafana 11.1 sends it: it takes the interval of an annotation, which it is not told, for a second."""
    rate_s = max((1 if annotation else step_s) + least_s, 4 * least_s)
    return expression.replace("$__interval", f"{step_s}s").replace("$__rate_interval", f"{rate_s}s")


@pytest.mark.parametrize("step_s", STEPS_S)
@pytest.mark.parametrize(
    ("where", "expression", "least_s", "annotation"), list(drawn()), ids=lambda part: str(part)[:50]
)
def test_no_zoom_leaves_a_part_of_the_time_out(where, expression, least_s, annotation, step_s):
    step_s = max(step_s, least_s)
    asked = parse(at_step(expression, step_s, least_s, annotation))
    left_out = gaps(asked, timedelta(seconds=step_s), timedelta(seconds=SCRAPE_S))
    assert list(left_out) == [], where


@pytest.mark.parametrize(
    ("expression", "annotation"),
    [
        ("sum(increase(driftwood_drift_alarms_total[5m]))", False),
        ("sum(increase(driftwood_drift_alarms_total[$__interval]))", False),
        ("changes(driftwood:champion:version[$__rate_interval]) > 0", True),
        ("changes(driftwood:champion:version[$__interval]) > 0", True),
        ("max_over_time(changes(driftwood:champion:version[15s])[$__interval:15s]) > 0", True),
        ("max_over_time(changes(driftwood:champion:version[1m])[1h:15s]) > 0", True),
    ],
)
def test_a_range_that_does_not_grow_with_the_step_is_found(expression, annotation):
    asked = parse(at_step(expression, 7200, 15, annotation))
    assert list(gaps(asked, timedelta(seconds=7200), timedelta(seconds=SCRAPE_S)))


HAPPENED = {  # annotation -> the series that it is about: before, and after
    "Swap": ("driftwood:champion:version", 3, 4),
    "Drift alarm": ('driftwood_drift_alarms_total{kind="new"}', 0, 1),
    "Rollback": ('driftwood_model_swaps_total{why="rollback"}', 0, 1),
}
MOMENTS = 12
"""Evenly between two points that are asked for."""


@pytest.mark.parametrize("step_s", STEPS_S)
def test_what_happened_is_marked_at_any_zoom(step_s: int, tmp_path: Path):
    """Whenever it was: each annotation has a value at one of the points that follow, and at none before."""
    step, first = step_s // SCRAPE_S, 7200 // SCRAPE_S + 1  # in samples
    moments = sorted({first + n * step // MOMENTS for n in range(MOMENTS)})
    notes = [note for board in dashboards().values() for note in board["annotations"]["list"]]
    asked = {note["name"]: at_step(note["expr"], step_s, _seconds(note["step"]), True) for note in notes}
    groups = [
        {
            "name": f"{name} at sample {at}",
            "interval": f"{SCRAPE_S}s",
            "input_series": [{"series": series, "values": f"{before}x{at} {after}x{2 * step + 20}"}],
            "promql_expr_test": _marks(asked[name], step_s),
        }
        for name, (series, before, after) in HAPPENED.items()
        for at in moments
    ]
    file = tmp_path / "marks.test.yml"
    evaluated = {"rule_files": [], "evaluation_interval": f"{SCRAPE_S}s"}  # so often samples come in
    file.write_text(json.dumps(evaluated | {"tests": groups}))  # JSON is YAML
    run([tool("promtool", PROMTOOL), "test", "rules", str(file)])


def _marks(expression: str, step_s: int) -> list[dict]:
    """None in the two hours before the event; at least one in the time of two steps after, or five minutes."""
    after_s = max(2 * step_s, 300)
    return [
        {"expr": f"count_over_time(({expression})[2h:{step_s}s])", "eval_time": "7200s"},
        {
            "expr": f"sum(count_over_time(({expression})[{after_s}s:{step_s}s])) >= bool 1",
            "eval_time": f"{7200 + after_s}s",
            "exp_samples": [{"labels": "{}", "value": 1}],
        },
    ]


@pytest.mark.parametrize("name", dashboards())
def test_a_dashboard_is_whole(name):
    board = dashboards()[name]
    source = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text())["datasources"]
    wanted = {"type": source[0]["type"], "uid": source[0]["uid"]}
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({panel["title"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, f"{panel['title']} lies over another panel"
        taken |= cells
        for part in (panel, *panel.get("targets", ())):
            assert panel["type"] == "row" or part["datasource"] == wanted
        letters = [target["refId"] for target in panel.get("targets", ())]
        assert panel["type"] == "row" or letters == sorted(set(letters)) != []
    assert all(note["datasource"] == wanted for note in board["annotations"]["list"])


def test_the_dashboards_are_known_by_fixed_names_and_provisioned():
    boards = dashboards()
    assert {board["uid"] for board in boards.values()} == UIDS
    assert {f"driftwood-{Path(name).stem}" for name in boards} == UIDS
    assert all("id" not in board for board in boards.values())  # Grafana gives its own
    provider = yaml.safe_load((GRAFANA / "provisioning" / "dashboards" / "driftwood.yml").read_text())["providers"][0]
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"
