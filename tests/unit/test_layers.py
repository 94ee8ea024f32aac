"""Imports point one way: services -> shared.adapters -> shared.model -> shared.core, and no service imports another."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
LAYERS = ("shared.core", "shared.model", "shared.adapters")
SERVICES = ("consumer", "recommender", "retrainer", "simulator", "stack")
# The long-running services; the others are commands and tools, composition roots from end to end.
COMPOSED_IN_MAIN = ("consumer", "recommender")


def modules(package: str) -> Iterator[Path]:
    yield from sorted((ROOT / package.replace(".", "/")).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Dotted names of everything of ours that a file imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_every_file_belongs_to_a_known_package():
    tops = {p.parent.name for p in (ROOT / "services").glob("*/__init__.py")}
    assert tops == set(SERVICES)
    assert {p.parent.name for p in (ROOT / "shared").glob("*/__init__.py")} == {"core", "model", "adapters"}


@pytest.mark.parametrize("layer", LAYERS)
def test_shared_imports_downward_only(layer):
    above = LAYERS[LAYERS.index(layer) + 1 :]
    for path in modules(layer):
        for name in imports(path):
            assert not name.startswith(("services.", "tests.", *above)), f"{path} imports {name}"


@pytest.mark.parametrize("service", SERVICES)
def test_no_service_imports_another(service):
    others = tuple(f"services.{other}." for other in SERVICES if other != service)
    for path in modules(f"services.{service}"):
        for name in imports(path):
            assert not name.startswith(("tests.", *others)), f"{path} imports {name}"


@pytest.mark.parametrize("service", COMPOSED_IN_MAIN)
def test_only_main_builds_adapters(service):
    for path in modules(f"services.{service}"):
        if path.name != "__main__.py":
            for name in imports(path):
                assert not name.startswith("shared.adapters"), f"{path} imports {name}"


def test_core_needs_no_torch_and_does_no_io():
    forbidden = ("torch", "numpy", "redis", "kafka", "socket", "subprocess", "fsspec")
    for path in modules("shared.core"):
        tree = ast.parse(path.read_text())
        typing_only = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
            for inner in ast.walk(node)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Import) and id(node) not in typing_only:
                assert not {a.name.split(".")[0] for a in node.names} & set(forbidden), path
            if isinstance(node, ast.ImportFrom) and id(node) not in typing_only:
                assert (node.module or "").split(".")[0] not in forbidden, path
