"""What every model registry promises: in memory, in a directory, and in an object store (fsspec's own, in memory)."""

import contextlib
import json
import logging
import os
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch

from shared.adapters.memory_registry import MemoryModelRegistry
from shared.adapters.registry import FileModelRegistry
from shared.core.errors import ModelDamaged, NoSuchVersion, SettingsInvalid, Unavailable
from shared.core.registry_port import Manifest, ModelRegistry, rolled_back
from shared.model.inference import InferenceModel
from shared.model.network import Network, Weights

ITEMS = ["a", "b", "ünï/çødé"]


def weights(seed: int = 1) -> Weights:
    return Network(3, 4, torch.Generator().manual_seed(seed)).weights()


@pytest.fixture(params=["memory", "directory", "object-store"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> ModelRegistry:
    if request.param == "memory":
        return MemoryModelRegistry()
    return FileModelRegistry(str(tmp_path / "models") if request.param == "directory" else f"memory://{uuid.uuid4()}")


@pytest.fixture(params=["directory", "object-store"])
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[FileModelRegistry, Callable[..., None]]:
    """A registry with two versions, the second in service, and a way to write or remove (None) one of its files."""
    uri = str(tmp_path / "models") if request.param == "directory" else f"memory://{uuid.uuid4()}"
    registry = FileModelRegistry(uri)
    registry.publish(weights(1), ITEMS)
    registry.publish(weights(2), ITEMS)
    filesystem, root = fsspec.core.url_to_fs(uri)

    def change(path: str, content: bytes | Callable[[bytes], bytes] | None) -> None:
        full = f"{root}/{path}"
        if content is None:
            filesystem.rm(full)
        else:
            filesystem.pipe_file(full, content(filesystem.cat_file(full)) if callable(content) else content)

    return registry, change


def test_an_empty_registry(registry: ModelRegistry) -> None:
    assert registry.current() is None
    assert registry.versions() == []
    for version in ("1", "0", "-1", "../1", "01", "", "one"):
        with pytest.raises(NoSuchVersion):
            registry.load(version)
    with pytest.raises(NoSuchVersion):
        registry.set_current("1")
    assert registry.current() is None


def test_what_is_published_can_be_loaded(registry: ModelRegistry) -> None:
    told: dict[str, Any] = {"config": {"seed": 1}, "metrics": {"recall20": 0.5}, "lineage": {"parent": None}}
    manifest = registry.publish(weights(), ITEMS, **told)
    model = registry.load("1")
    assert (manifest.version, manifest.config, manifest.metrics, manifest.lineage) == ("1", *told.values())
    assert model.manifest == manifest == registry.manifest("1")
    assert model.items == ITEMS
    assert model.weights.keys() == weights().keys()
    assert all(torch.equal(model.weights[name], tensor) for name, tensor in weights().items())
    assert registry.current() == "1"


def test_a_loaded_model_serves(registry: ModelRegistry) -> None:
    registry.publish(weights(), ITEMS)
    model = registry.load("1")
    serving = InferenceModel(model.manifest.version, model.manifest.fingerprint, model.items, model.weights)
    assert serving.advance(serving.start(1), [[0, 2]]).shape == (1, 4)


def test_versions_are_numbered_and_the_pointer_moves(registry: ModelRegistry) -> None:
    for seed in (1, 2, 3):
        assert registry.publish(weights(seed), ITEMS, make_current=seed < 3).version == str(seed)
    assert [manifest.version for manifest in registry.versions()] == ["1", "2", "3"]
    assert registry.current() == "2"
    registry.set_current("1")  # a rollback
    assert registry.current() == "1"
    registry.publish(weights(4), ITEMS)
    assert registry.current() == "4"


def test_the_fingerprint_tells_weights_apart(registry: ModelRegistry) -> None:
    prints = [registry.publish(weights(seed), ITEMS).fingerprint for seed in (1, 2, 1)]
    assert prints[0] == prints[2] != prints[1]
    assert all(0 < value < 2**64 for value in prints)


@pytest.mark.parametrize(
    ("change", "items", "message"),
    [
        ({}, ["a", "b"], "3 embeddings for 2 items"),
        ({}, ["a", "b", "a"], "twice"),
        ({"item_bias": torch.zeros(2)}, ITEMS, "item_bias has shape"),
        ({"item_bias": torch.tensor([0.0, np.nan, 0.0])}, ITEMS, "item_bias holds numbers that are not finite"),
    ],
)
def test_what_does_not_fit_is_not_published(
    registry: ModelRegistry, change: Weights, items: list[str], message: str
) -> None:
    with pytest.raises(ModelDamaged, match=message):
        registry.publish(weights() | change, items)
    assert registry.versions() == []
    assert registry.current() is None


def test_publishers_at_once_get_numbers_of_their_own(registry: ModelRegistry) -> None:
    if isinstance(registry, FileModelRegistry) and registry.uri.startswith("memory:"):
        pytest.skip("fsspec's memory store does not promise put-if-absent between threads")
    start, published = threading.Barrier(8), list[Manifest]()

    def publish(seed: int) -> None:
        start.wait()
        published.append(registry.publish(weights(seed), ITEMS))

    threads = [threading.Thread(target=publish, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(int(manifest.version) for manifest in published) == list(range(1, 9))
    for manifest in published:
        assert registry.load(manifest.version).manifest == manifest
    assert registry.current() == "8"  # no slow publisher pointed back


def test_the_files_are_as_documented(tmp_path: Path) -> None:
    manifest = FileModelRegistry(f"file://{tmp_path}").publish(weights(), ITEMS, metrics={"mrr20": 0.3})
    folder = tmp_path / "versions" / "1"
    assert sorted(os.listdir(tmp_path / "versions")) == ["1"]
    assert sorted(os.listdir(folder)) == ["items.json", "manifest.json", "weights.safetensors"]
    assert json.loads((tmp_path / "current").read_text()) == {"version": "1"}
    written = json.loads((folder / "manifest.json").read_text())
    assert written["fingerprint"] == written["checksums"]["weights.safetensors"][:16] == f"{manifest.fingerprint:016x}"
    assert written["format"] == 1
    assert json.loads((folder / "items.json").read_text()) == ITEMS


DAMAGES: dict[str, tuple[str, Any]] = {
    "weights cut short": ("weights.safetensors", lambda content: content[:-5]),
    "a bit flipped": ("weights.safetensors", lambda content: content[:-1] + bytes([content[-1] ^ 1])),
    "no weights": ("weights.safetensors", None),
    "no items": ("items.json", None),
    "other items": ("items.json", b'["a","b","c"]'),
    "empty manifest": ("manifest.json", b""),
    "no manifest": ("manifest.json", None),
    "manifest is a list": ("manifest.json", b"[]"),
    "manifest of another version": (
        "manifest.json",
        lambda content: content.replace(b'"version": "2"', b'"version": "9"'),
    ),
    "manifest of a later format": ("manifest.json", lambda content: content.replace(b'"format": 1', b'"format": 2')),
    "other fingerprint": ("manifest.json", lambda content: content.replace(b'"fingerprint": "', b'"fingerprint": "f')),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_version_is_refused_and_named(stored: Any, damage: str) -> None:
    registry, change = stored
    file, content = DAMAGES[damage]
    change(f"versions/2/{file}", content)
    with pytest.raises(ModelDamaged, match=f"versions/2/{file}"):
        registry.load("2")
    registry.load("1")
    registry.set_current("1")
    assert registry.current() == "1"


def test_a_damaged_manifest_does_not_hide_the_others(stored: Any, caplog: pytest.LogCaptureFixture) -> None:
    registry, change = stored
    change("versions/1/manifest.json", b"{")
    with caplog.at_level(logging.WARNING):
        assert [manifest.version for manifest in registry.versions()] == ["2"]
    assert "version 1 left out" in caplog.text


@pytest.mark.parametrize("content", [b"", b"2", b'{"version": "latest"}', b'{"version": "-1"}'])
def test_a_damaged_pointer_is_named_and_mended_by_the_next_publication(stored: Any, content: bytes) -> None:
    registry, change = stored
    change("current", content)
    with pytest.raises(ModelDamaged, match="/current: "):
        registry.current()
    registry.publish(weights(3), ITEMS)
    assert registry.current() == "3"


def test_a_version_without_manifest_keeps_its_number(stored: Any) -> None:
    """A publisher to an object store that died half-way: its number is not given out again."""
    registry, change = stored
    change("versions/2/manifest.json", None)
    assert registry.publish(weights(3), ITEMS).version == "3"


def test_a_publisher_that_dies_leaves_nothing_to_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = FileModelRegistry(str(tmp_path))
    registry.publish(weights(1), ITEMS)

    def die(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", die)
    with pytest.raises(Unavailable, match="No space left on device"):
        registry.publish(weights(2), ITEMS)
    monkeypatch.undo()
    assert os.listdir(tmp_path / "versions") == ["1"]
    assert registry.current() == "1"


def test_a_store_that_cannot_be_reached(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    registry = FileModelRegistry(str(tmp_path / "file" / "models"))
    for call in (registry.current, registry.versions, lambda: registry.publish(weights(), ITEMS)):
        with pytest.raises(Unavailable, match=r"model registry .*file/models"):
            call()


def test_an_unknown_kind_of_store() -> None:
    with pytest.raises(SettingsInvalid, match="MODEL_URI nowhere://models"):
        FileModelRegistry("nowhere://models")


def test_the_journal_gives_the_newest_notes_first(registry: ModelRegistry) -> None:
    assert registry.notes() == []
    written = [registry.note("alarm", {"version": "1", "before": 0.5}), registry.note("rollback", {"version": "ünï"})]
    written += [registry.note("gate", {"n": n, "list": [1, None]}) for n in range(20)]
    assert registry.notes() == written[::-1]
    assert registry.notes(limit=3) == written[:-4:-1]
    assert rolled_back(registry.notes()) == {"ünï"}
    assert registry.versions() == []


def test_notes_are_files_and_a_damaged_one_hides_no_other(stored: Any, caplog: pytest.LogCaptureFixture) -> None:
    registry, change = stored
    notes = [registry.note("swap", {"version": str(n)}) for n in range(3)]
    change(f"notes/{notes[1].id}.json", b"{")
    change("notes/readme.txt", b"not ours")
    with caplog.at_level(logging.WARNING):
        assert registry.notes(limit=2) == [notes[2], notes[0]]
    assert f"notes/{notes[1].id}.json left out" in caplog.text
    change(f"notes/{notes[0].id}.json", b"never changed by us, so not read again")
    assert registry.notes(limit=2) == [notes[2], notes[0]]


def test_old_versions_can_be_removed_and_their_numbers_do_not_come_back(registry: ModelRegistry) -> None:
    for seed in range(1, 5):
        registry.publish(weights(seed), ITEMS, make_current=seed == 2)
    assert [registry.remove(version) for version in ("1", "3")] == [True, True]
    assert [manifest.version for manifest in registry.versions()] == ["2", "4"]
    for call in (registry.load, registry.manifest, registry.set_current):
        with pytest.raises(NoSuchVersion):
            call("3")
    assert registry.current() == "2"
    registry.load("2")
    assert registry.publish(weights(5), ITEMS).version == "5"


def test_what_is_in_service_or_newest_or_not_there_is_not_removed(registry: ModelRegistry) -> None:
    assert registry.remove("1") is False
    for seed in (1, 2):
        registry.publish(weights(seed), ITEMS, make_current=seed == 1)
    assert [registry.remove(version) for version in ("1", "2", "3", "0", "one", "../1")] == [False] * 6
    assert [manifest.version for manifest in registry.versions()] == ["1", "2"]


def test_a_registry_whose_pointer_cannot_be_read_loses_nothing(stored: Any) -> None:
    registry, change = stored
    change("current", b"{")
    assert registry.remove("1") is False
    assert [manifest.version for manifest in registry.versions()] == ["1", "2"]


def test_a_removed_version_leaves_no_file_behind(tmp_path: Path) -> None:
    registry = FileModelRegistry(str(tmp_path))
    for seed in (1, 2, 3):
        registry.publish(weights(seed), ITEMS)
    died = tmp_path / "versions" / ".removed-by-one-that-died"
    os.rename(tmp_path / "versions" / "1", died)
    assert registry.remove("2")
    assert os.listdir(tmp_path / "versions") == ["3"]


def test_a_removal_from_an_object_store_that_was_cut_short_is_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"memory://{uuid.uuid4()}"
    registry = FileModelRegistry(uri)
    for seed in (1, 2):
        registry.publish(weights(seed), ITEMS)
    filesystem, root = fsspec.core.url_to_fs(uri)
    remove, removed = filesystem.rm_file, []

    def cut(path: str) -> None:
        if len(removed) == 2:
            raise OSError("connection lost")
        removed.append(path)
        remove(path)

    with monkeypatch.context() as patch:
        patch.setattr(type(filesystem), "rm_file", lambda self, path: cut(path))
        with pytest.raises(Unavailable, match="connection lost"):
            registry.remove("1")
    assert [manifest.version for manifest in registry.versions()] == ["1", "2"]
    with pytest.raises(ModelDamaged, match="missing"):
        registry.load("1")
    assert registry.remove("1")
    assert [manifest.version for manifest in registry.versions()] == ["2"]
    assert not filesystem.exists(f"{root}/versions/1/manifest.json")


def test_pointing_and_removing_at_once_never_leaves_a_pointer_to_nothing(tmp_path: Path) -> None:
    registry = FileModelRegistry(str(tmp_path))
    registry.publish(weights(1), ITEMS)
    for seed in range(2, 12):
        registry.publish(weights(seed), ITEMS)
        start = threading.Barrier(2)

        def point(version: str = str(seed - 1), start: threading.Barrier = start) -> None:
            start.wait()
            with contextlib.suppress(NoSuchVersion):
                registry.set_current(version)

        thread = threading.Thread(target=point)
        thread.start()
        start.wait()
        registry.remove(str(seed - 1))
        thread.join()
        registry.load(registry.current() or "")
        registry.set_current(str(seed))
