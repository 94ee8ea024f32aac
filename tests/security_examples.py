"""The examples of deploy/SECURITY.md, for tests to run as they stand there."""

from __future__ import annotations

import re

from tests.servers import ROOT

_PAGE = ROOT / "deploy" / "SECURITY.md"


def example(name: str, **replaced: object) -> str:
    """The code block behind ``<!-- example: name -->``; each keyword's text is replaced, and must be there."""
    found = re.search(rf"<!-- example: {re.escape(name)} -->\n```\w*\n(.*?)```", _PAGE.read_text(), re.DOTALL)
    assert found, f"{_PAGE} has no example {name!r}"
    text = found[1]
    for old, new in replaced.items():
        assert old in text, f"example {name!r} says nothing of {old!r}"
        text = text.replace(old, str(new))
    return text


def settings_of(text: str) -> dict[str, str]:
    """NAME=VALUE lines."""
    return dict(line.split("=", 1) for line in text.splitlines() if line)
