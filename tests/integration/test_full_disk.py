"""The deciding retrainer with its disk full: a small file system of its own, a real training as a child process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.retrainer.trainer import ChildTrainer
from shared.adapters.registry import FileModelRegistry
from tests.integration.test_train_job import JOB, environment, fill, whole
from tests.servers import until
from tests.unit.retrainer_twins import World

DISK_KB = 1024
DEADLINE_S = 120.0


class Disk:
    """A file system that can be filled to the last byte."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self, leave_kb: int = 0) -> None:
        with self._ballast.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass
        if leave_kb:
            os.truncate(self._ballast, self._ballast.stat().st_size - 1024 * leave_kb)

    def free(self) -> None:
        self._ballast.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", f"size={DISK_KB}k", "driftwood-test", str(folder)]
    if sys.platform != "linux" or subprocess.run(mounted, capture_output=True).returncode:
        pytest.skip("a file system of its own cannot be mounted here: that needs root, and Linux")
    yield Disk(folder)
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


class Decider:
    """The retrainer that decides, over a registry on disk and trainings as child processes; its clock is the test's."""

    def __init__(self, folder: Path, models: Path, training: Path) -> None:
        settings = {"MODEL_URI": models, "TRAIN_DIR": training, "TRAIN_EPOCHS": 2}
        self.trainer = ChildTrainer([sys.executable, *JOB], environment(folder, **settings), 0)
        self.registry = FileModelRegistry(str(models))
        self.world = World(registry=self.registry, trainer=self.trainer)
        self.world.enough = True

    def outcomes(self) -> list[dict[str, object]]:
        return self.world.details("training")

    def until_trained(self, times: int) -> None:
        def told() -> bool:
            self.world.step()
            return len(self.outcomes()) >= times

        until(told, DEADLINE_S, f"{times} outcomes, there are {self.outcomes()}: {self.world.retrainer.problem}")

    def stop(self) -> None:
        self.trainer.stop()


def leftovers(models: Path) -> list[str]:
    """Files that are neither a version's, nor the pointer, its lock, or a whole note."""
    found = [path.name for folder in (models, models / "versions", models / "notes") for path in folder.glob(".*")]
    return [name for name in found if name != ".lock"]


def test_without_room_for_the_model_the_registry_stays_whole_and_the_training_is_done_again(
    tmp_path: Path, disk: Disk
) -> None:
    fill(tmp_path, 100)
    models = disk.folder / "models"
    decider = Decider(tmp_path, models, tmp_path / "training")
    disk.fill()
    try:
        until(lambda: decider.world.step() or decider.trainer.running, 30, "the first training to begin")
        # Neither the model nor the note of the failure can be written: it is told, and not forgotten.
        until(
            lambda: decider.world.step() or "No space left on device" in (decider.world.retrainer.problem or ""),
            DEADLINE_S,
            "the reason",
        )
        assert not decider.trainer.running
        assert (decider.registry.current(), decider.registry.versions(), leftovers(models)) == (None, [], [])
        disk.free()
        decider.until_trained(1)
        (failed,) = decider.outcomes()
        assert failed["outcome"] == "failed"
        assert "No space left on device" in str(failed["problem"])
        assert not decider.trainer.running
        decider.world.seconds += 31
        decider.until_trained(2)
        assert decider.outcomes()[1]["version"] == "1", decider.outcomes()
        assert decider.registry.load("1").manifest.lineage["parent"] is None
        assert leftovers(models) == []
    finally:
        decider.stop()


def test_without_room_for_checkpoints_training_goes_on_or_says_why_it_cannot(tmp_path: Path, disk: Disk) -> None:
    fill(tmp_path, 100)
    decider = Decider(tmp_path, tmp_path / "models", disk.folder / "training")
    disk.fill()
    try:
        decider.until_trained(1)
        (failed,) = decider.outcomes()
        assert failed["outcome"] == "failed"
        assert "TRAIN_DIR" in str(failed["problem"])
        assert "No space left on device" in str(failed["problem"])
        assert whole(tmp_path) == []
        disk.fill(leave_kb=8)  # enough for the plan, not for a checkpoint
        decider.world.seconds += 31
        decider.until_trained(2)
        assert decider.outcomes()[1]["version"] == "1", decider.outcomes()
        assert whole(tmp_path) == ["1"]
    finally:
        decider.stop()
