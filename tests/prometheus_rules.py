"""The rules of deploy/prometheus for the Prometheus operator: ``python -m tests.prometheus_rules`` writes the file."""

from __future__ import annotations

from typing import Any

import yaml

from tests.servers import ROOT

SOURCES = [ROOT / "deploy" / "prometheus" / f"{name}.rules.yml" for name in ("recording", "alerts")]
TARGET = ROOT / "deploy" / "kubernetes" / "components" / "service-monitor" / "prometheus-rules.yaml"
_HEAD = """# deploy/prometheus/*.rules.yml, word for word: python -m tests.prometheus_rules writes this file.
"""


def groups() -> list[dict[str, Any]]:
    """All groups of the rule files."""
    return [group for path in SOURCES for group in yaml.safe_load(path.read_text())["groups"]]


def resource() -> str:
    """The content of the file."""
    body = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "driftwood", "labels": {"app.kubernetes.io/name": "driftwood"}},
        "spec": {"groups": groups()},
    }
    return _HEAD + yaml.safe_dump(body, sort_keys=False, width=120, allow_unicode=True)


if __name__ == "__main__":
    TARGET.write_text(resource())
    print(TARGET.relative_to(ROOT))
