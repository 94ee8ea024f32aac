"""Command-line tools that tests call: their place on this machine."""

from __future__ import annotations

import shutil

import pytest

from tests.servers import IN_CI


def tool(name: str, where_from: str) -> str:
    """The path of a program. Where it is not installed the test is skipped, and fails in CI."""
    path = shutil.which(name)
    if path is None:
        what = f"no {name} on PATH: {where_from}"
        if IN_CI:
            pytest.fail(what)
        pytest.skip(what)
    return path
