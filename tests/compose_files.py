"""docker-compose.yml and .env as tests read them: parsed, with the variables of .env filled in."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import yaml

from tests.servers import ROOT

COMPOSE = ROOT / "docker-compose.yml"
OURS = "driftwood"
ONE_SHOT = ("topics",)  # they end by themselves
_VARIABLE = re.compile(r"\$\{([A-Z_]+)(?::?-([^}]*))?\}")


@cache
def versions() -> dict[str, str]:
    """Name -> value of .env."""
    lines = (ROOT / ".env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def variables(text: str) -> dict[str, str]:
    """Name -> default of each ``${NAME:-default}`` in the text."""
    return dict(_VARIABLE.findall(text))


@cache
def compose() -> dict[str, Any]:
    """The file with the values of .env, the doubled dollars as they reach the containers."""
    filled = _VARIABLE.sub(lambda found: versions().get(found[1], found[2]), COMPOSE.read_text())
    return yaml.safe_load(filled.replace("$$", "$"))


def services() -> dict[str, dict[str, Any]]:
    """Name -> definition, merged keys included."""
    return compose()["services"]
