"""The README's tables of settings and of files, made from the code: ``python -m tests.readme_parts`` writes them."""

from __future__ import annotations

import ast
from pathlib import Path

from pydantic import SecretStr
from pydantic_settings import BaseSettings

from services.simulator.demo.settings import DemoSettings
from services.simulator.shop_settings import ShopSettings
from services.stack.settings import StackSettings
from shared.adapters import settings

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
OTHERS = {
    "Makefile": "Every command; `make` alone prints them.",
    "pyproject.toml": "Dependencies by lower bound, and the settings of ruff, mypy and pytest.",
    "deploy/SECURITY.md": "TLS, passwords, keys and limits, each with an example that a test runs.",
    "deploy/constraints.txt": "The exact versions that `make` installs.",
    "docker-compose.yml": "The whole system in containers; its header explains the layers.",
    ".env": "Versions, ports and sizes for Compose.",
    "deploy/compose.env": "Further settings of the services under Compose.",
    "deploy/compose.sh": "What `make up`, `make down` and `make image-size` do.",
    "deploy/Dockerfile": "One image for all services.",
    "deploy/warm_up.py": "At image build: load what the services load, so that its byte code is there.",
    "deploy/kubernetes": "Kustomize files for a cluster; its README says how.",
    "deploy/SIZING.md": "How much memory and how many cores, and what to scale when.",
    "deploy/prometheus": "What is scraped, recording rules, alerts, and their tests (promtool).",
    "deploy/grafana": "Data source and dashboards, provisioned from files.",
    "deploy/contracts": "OpenAPI, AsyncAPI, JSON Schemas; `python -m tests.contract_documents` makes them.",
    "tests/unit": "Pure and fast; hypothesis where a property exists.",
    "tests/contract": "One suite for each port, run against the twin in memory and the real server.",
    "tests/integration": "Single services as processes, against real Redis and a real broker.",
    "tests/e2e": "The whole system, killed at bad moments.",
    "tests/browser": "The console page in Chromium.",
    "tests/console_screenshot.py": "The console's picture in this README, of a real run.",
    "services/recommender/console/static": "The console page: HTML, CSS, JavaScript modules, sent as they are.",
    "tests/bench": "`make bench`.",
    "tests/servers.py": "Real servers for tests: from the environment, containers, or processes here.",
    ".ci/run": "What CI runs: the linters and all tests.",
    "CHANGELOG.md": "What changed, why, and what was tried and did not work.",
}
CLASSES: tuple[tuple[str, type[BaseSettings]], ...] = (
    ("Kafka", settings.KafkaSettings),
    ("Redis", settings.RedisSettings),
    ("Model registry", settings.RegistrySettings),
    ("Interactions", settings.EventSettings),
    ("Consumer", settings.ConsumerSettings),
    ("Engagement", settings.EngagementSettings),
    ("HTTP", settings.HttpSettings),
    ("Recommender", settings.RecommenderSettings),
    ("Retrainer", settings.RetrainerSettings),
    ("Drift and rollback", settings.DriftSettings),
    ("Training", settings.TrainSettings),
    ("Logs", settings.LoggingSettings),
    ("make stack", StackSettings),
    ("make demo", DemoSettings),
    ("Simulated shoppers (docker compose --profile demo)", ShopSettings),
)


def settings_table() -> str:
    lines = ["| setting | default | what |", "|---|---|---|"]
    for title, cls in CLASSES:
        lines.append(f"| **{title}** | | |")
        for name, field in cls.model_fields.items():
            value = field.default.get_secret_value() if isinstance(field.default, SecretStr) else field.default
            shown = f"`{value}`" if value not in ("", None) else "–"
            lines.append(f"| `{name.upper()}` | {shown} | {field.description or ''} |")
    return "\n".join(lines)


def layout_table() -> str:
    lines = ["| path | what |", "|---|---|"]
    for path in sorted(p for top in ("services", "shared") for p in (ROOT / top).rglob("*.py")):
        if path.name != "__init__.py":
            summary = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0].replace("``", "`")
            lines.append(f"| `{path.relative_to(ROOT)}` | {summary} |")
    lines += [f"| `{path}` | {what} |" for path, what in OTHERS.items()]
    return "\n".join(lines)


def with_tables(readme: str) -> str:
    for name, table in (("settings", settings_table()), ("layout", layout_table())):
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        head, rest = readme.split(begin)
        readme = f"{head}{begin}\n{table}\n{end}{rest.split(end)[1]}"
    return readme


if __name__ == "__main__":
    README.write_text(with_tables(README.read_text()))
