"""What the README says is there, is there."""

from __future__ import annotations

import re

from tests.readme_parts import README, ROOT, with_tables


def test_its_tables_are_those_of_the_code():
    text = README.read_text()
    assert text == with_tables(text), "run: python -m tests.readme_parts"


def test_every_make_command_named_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`make ([a-z-]+)|^make ([a-z-]+)", README.read_text(), re.MULTILINE))
    assert {a or b for a, b in named} <= targets


def test_every_path_of_the_layout_exists():
    block = README.read_text().split("<!-- layout -->")[1].split("<!-- /layout -->")[0]
    paths = re.findall(r"^\| `([^`]+)`", block, re.MULTILINE)
    assert len(paths) > 60
    assert [p for p in paths if not (ROOT / p).exists()] == []
