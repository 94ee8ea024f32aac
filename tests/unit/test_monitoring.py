"""deploy/prometheus, deploy/grafana: every metric and label that they name exists; the rules do what they say."""

from __future__ import annotations

import functools
import http
import json
import subprocess
from collections.abc import Iterator

import pytest
import yaml
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from services.consumer.metrics import ConsumerMetrics
from services.recommender.metrics import RecommenderMetrics
from services.retrainer.metrics import RetrainerMetrics
from services.retrainer.session_log_metrics import SessionLogMetrics
from shared.adapters.settings import ConsumerSettings, HttpSettings, RetrainerSettings
from shared.core.ports import StoreMemory
from tests.promql import TARGET, Labels, Values, check_values, labels, parse, selectors, template_labels
from tests.servers import ROOT
from tests.tools import tool
from tests.unit.lived_metrics import lived

PROMETHEUS = ROOT / "deploy" / "prometheus"
GRAFANA = ROOT / "deploy" / "grafana"
PROMTOOL = "apt-get install prometheus (on Debian 13: promtool)"


def exported() -> dict[str, Labels]:
    """Every series that the services export, with its labels, asked of the real metrics."""
    registries = [CollectorRegistry() for _ in range(4)]
    ConsumerMetrics(registries[0]).store_memory(StoreMemory(0, 1, 0))
    RecommenderMetrics(registries[1])
    RetrainerMetrics(registries[2])
    SessionLogMetrics(registries[2])  # one process has both
    ProcessCollector(registry=registries[3])  # of prometheus_client's own registry, that of all services
    found: dict[str, Labels] = {}
    for registry in registries[:3]:
        for metric in registry._collector_to_names:
            for name, more in _series(metric):
                found[name] = found.get(name, TARGET) | frozenset(metric._labelnames) | more
    for family in registries[3].collect():
        for sample in family.samples:
            found[sample.name] = TARGET
    return found


def _series(metric: object) -> Iterator[tuple[str, Labels]]:
    if isinstance(metric, Counter):
        yield f"{metric._name}_total", frozenset()
    elif isinstance(metric, Histogram):
        yield f"{metric._name}_bucket", frozenset({"le"})
        yield from ((f"{metric._name}{suffix}", frozenset()) for suffix in ("_sum", "_count"))
    else:
        assert isinstance(metric, Gauge), metric
        yield metric._name, frozenset()


def rules(name: str) -> list[dict]:
    groups = yaml.safe_load((PROMETHEUS / f"{name}.rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


RECORDED, ALERTS = rules("recording"), rules("alerts")


def known() -> dict[str, Labels]:
    """What a query can name: what is exported, what Prometheus adds, and what the recording rules make of it."""
    found = exported() | {"up": TARGET, "ALERTS": TARGET | {"alertname", "alertstate", "severity"}}
    for rule in RECORDED:
        assert rule["record"] not in found, f"made twice: {rule['record']}"
        found[rule["record"]] = labels(parse(rule["expr"]), found)
    return found


@functools.cache
def values() -> Values:
    """What the labels that a selector may name can be."""
    found = {name: dict(held) for name, held in lived().items()}
    found["driftwood_http_requests_total"]["status"] |= {str(status.value) for status in http.HTTPStatus}
    found["ALERTS"] = {"alertstate": frozenset({"pending", "firing"})}
    for name, there in exported().items() | {("up", TARGET)}:
        if there >= TARGET:
            found.setdefault(name, {})["job"] = frozenset(job["job_name"] for job in scraped())
    for rule in RECORDED:
        sources = [found.get(selector.name, {}) for selector in selectors(parse(rule["expr"]))]
        found[rule["record"]] = {
            label: frozenset().union(*(source.get(label, ()) for source in sources))
            for label in {label for source in sources for label in source}
        }
    return found


def scraped() -> list[dict]:
    return yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["scrape_configs"]


def dashboards() -> dict[str, dict]:
    return {path.name: json.loads(path.read_text()) for path in sorted((GRAFANA / "dashboards").glob("*.json"))}


def queries() -> list[tuple[str, str, str]]:
    """(where, expression, legend) of all dashboards."""
    found = []
    for name, board in dashboards().items():
        for panel in board["panels"]:
            for target in panel.get("targets", ()):
                found.append((f"{name}: {panel['title']}", target["expr"], target["legendFormat"]))
        found += [(f"{name}: {note['name']}", note["expr"], "") for note in board["annotations"]["list"]]
    return found


def test_recording_rules_read_what_is_exported():
    made = known()
    assert {name for name in made if ":" in name} == {rule["record"] for rule in RECORDED}


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_reads_what_exists_and_says_what_to_do(alert):
    there = labels(parse(alert["expr"]), known())
    assert alert["labels"].keys() == {"severity"}
    assert alert["labels"]["severity"] in ("critical", "warning", "info")
    assert alert["annotations"].keys() == {"summary", "description", "runbook"}
    for text in alert["annotations"].values():
        assert template_labels(text) <= there, text
        assert len(text) > 10


@pytest.mark.parametrize(("where", "expression", "legend"), queries(), ids=lambda part: part[:60])
def test_a_dashboard_reads_what_exists(where, expression, legend):
    assert template_labels(legend) <= labels(parse(expression), known()), where


def test_a_name_or_label_that_nobody_exports_is_found():
    there = known()
    for wrong in (
        "driftwood_no_such_total",
        "driftwood_dead_letters",
        "driftwood_freshness_seconds",
        'driftwood_dead_letters_total{reason="x"}',
        "sum by (topic) (rate(driftwood_dead_letters_total[5m]))",
        "histogram_quantile(0.9, sum by (since) (rate(driftwood_freshness_seconds_bucket[1m])))",
        "driftwood:freshness_seconds:p95 > driftwood:freshness_target:seconds",
    ):
        with pytest.raises(AssertionError):
            labels(parse(wrong), there)


def expressions() -> Iterator[tuple[str, str]]:
    """(where, expression) of all rules and dashboards."""
    yield from ((where, expression) for where, expression, _ in queries())
    yield from ((rule.get("alert") or rule["record"], rule["expr"]) for rule in (*RECORDED, *ALERTS))


@pytest.mark.parametrize(("where", "expression"), list(expressions()), ids=lambda part: part[:60])
def test_a_selector_names_values_that_are_counted(where, expression):
    check_values(parse(expression), values())


@pytest.mark.parametrize(
    "wrong",
    [
        'driftwood_model_swaps_total{why="rolled back"}',
        'driftwood:freshness_seconds:p95{since="kafka"}',
        'driftwood:rankings:rate1m{strategy="gru4rec"}',
        'driftwood_engagement_hits_total{k="25"}',
        'driftwood_http_requests_total{route!="/ready"}',
        'driftwood_http_requests_total{status=~"7.."}',
        'up{job=~"consumer|trainer"}',
        'driftwood_gate_recall20{of="champion"}',  # not lived through: what it can be is not known
    ],
)
def test_a_value_that_nothing_counts_is_found(wrong):
    labels(parse(wrong), known())
    with pytest.raises(AssertionError, match="never"):
        check_values(parse(wrong), values())


def test_everything_recorded_is_used():
    used = {s.name for _, text, _ in queries() for s in selectors(parse(text))}
    used |= {s.name for rule in (*RECORDED, *ALERTS) for s in selectors(parse(rule["expr"]))}
    assert {rule["record"] for rule in RECORDED} <= used
    names = [alert["alert"] for alert in ALERTS]
    assert len(set(names)) == len(names)


def test_every_alert_fires_in_a_test_of_the_rules():
    tested = (PROMETHEUS / "tests" / "alerts.test.yml").read_text()
    assert [a["alert"] for a in ALERTS if f'alertname="{a["alert"]}"' not in tested] == []


def test_the_rules_do_what_their_tests_say():
    promtool = tool("promtool", PROMTOOL)
    files = sorted(str(path) for path in (PROMETHEUS / "tests").glob("*.yml"))
    assert len(files) == 2
    run([promtool, "test", "rules", *files])


def test_the_configuration_is_valid():
    run([tool("promtool", PROMTOOL), "check", "config", str(PROMETHEUS / "prometheus.yml")])


def run(command: list[str]) -> None:
    """To its end, which has to be a good one."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_service_is_scraped_where_it_listens():
    jobs = {job["job_name"]: job["dns_sd_configs"][0] for job in scraped() if "dns_sd_configs" in job}
    ports = {
        "consumer": ConsumerSettings.model_fields["consumer_port"].default,
        "recommender": HttpSettings.model_fields["http_port"].default,
        "retrainer": RetrainerSettings.model_fields["retrainer_port"].default,
    }
    assert {name: (job["names"], job["port"]) for name, job in jobs.items()} == {
        name: ([name], port) for name, port in ports.items()
    }
    assert yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["rule_files"] == ["*.rules.yml"]
