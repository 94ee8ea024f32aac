"""make ablation, in process."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.retrainer import ablation_cli
from shared.model.config import TrainConfig
from tests.unit.test_model_commands import FAST, write_log


def compare(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, dict[str, Any]]:
    assert ablation_cli.main([*arguments, *FAST]) == 0
    *told, last = capsys.readouterr().out.splitlines()
    return "\n".join(told), json.loads(last)


def test_each_variant_is_trained_and_ranked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, test = write_log(tmp_path / "log.csv", 200, 0), write_log(tmp_path / "test.csv", 50, 1)
    table, found = compare(capsys, "--train", log, "--test", test, "--only", "default,one-step,products")
    assert list(found["variants"]) == ["default", "one-step", "products"]
    assert len({row["mrr20"] for row in found["variants"].values()}) == 3
    for name, row in found["variants"].items():
        assert row["recall20"] > found["popularity"]["recall20"]
        assert f"{row['recall20']:.4f}" in table
        assert name in table


def test_without_a_test_log_the_newest_part_is_held_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = write_log(tmp_path / "log.csv", 200, 0)
    _, found = compare(capsys, "--train", log, "--only", "default")
    assert 0.15 < found["events"] / (found["events"] + found["train_pairs"]) < 0.25


def test_unknown_names_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ablation_cli.main(["--train", write_log(tmp_path / "log.csv", 9, 0), "--only", "magic"]) == 2
    assert "magic" in capsys.readouterr().err


def test_each_variant_changes_the_default() -> None:
    for name, (_, changes) in ablation_cli.VARIANTS.items():
        assert (replace(TrainConfig(), **changes) == TrainConfig()) == (name == "default")
