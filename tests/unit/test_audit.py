"""make audit, with a PyPI that knows what it knows and an advisory when asked for one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers import ROOT

STUB = """
import os, sys
import pip_audit._service.pypi as pypi
from packaging.version import Version
from pip_audit._service.interface import VulnerabilityResult

def query(self, spec):
    # Of local versions, and of what was never published, PyPI knows nothing.
    if spec.version.local or spec.canonical_name == "driftwood":
        return pypi.SkippedDependency(name=spec.name, skip_reason="not found on PyPI"), []
    bad = spec.canonical_name == os.environ.get("VULNERABLE")
    return spec, [VulnerabilityResult("X-1", "invented", [Version("99")], set())] if bad else []

pypi.PyPIService.query = query
from pip_audit._cli import audit
sys.argv[0] = "pip-audit"
audit()
"""


def recipe() -> str:
    """What make would run, but for what installs."""
    told = subprocess.run(["make", "-n", "audit", "ARGS="], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines = [line for line in told.splitlines() if re.search(r"pip list|pip_audit", line)]
    assert len(lines) == 2
    return "\n".join(lines).replace(".venv/bin/python", sys.executable)


@pytest.mark.parametrize(("vulnerable", "status"), [("", 0), ("torch", 1)], ids=["clean", "torch has a hole"])
def test_what_is_installed_is_held_against_what_pypi_knows(tmp_path: Path, vulnerable: str, status: int) -> None:
    stub = tmp_path / "stub.py"
    stub.write_text(STUB)
    script = recipe().replace("-m pip_audit", str(stub)).replace(".run/audit.txt", str(tmp_path / "audit.txt"))
    told = subprocess.run(
        ["sh", "-ec", script], cwd=ROOT, env=os.environ | {"VULNERABLE": vulnerable}, capture_output=True, text=True
    )
    assert told.returncode == status, told.stderr
    listed = (tmp_path / "audit.txt").read_text().splitlines()
    assert any(line.startswith("torch==") for line in listed)
    assert all(re.fullmatch(r"[\w.-]+==[^+]+", line) for line in listed)
