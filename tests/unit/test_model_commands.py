"""make train and make evaluate, in process."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from services.retrainer import evaluate_cli, train_cli
from services.retrainer.progress import ProgressReport
from shared.adapters.checkpoints import Checkpoints
from shared.adapters.registry import FileModelRegistry
from shared.core.errors import ModelDamaged
from shared.model.train import Progress, TrainerState

FAST = ["--width", "16", "--epochs", "6", "--set", "batch_events=64"]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write_log(path: Path, sessions: int, seed: int, items: int = 60) -> str:
    """Item i is followed by i + 1 or i + 2."""
    rng = np.random.default_rng(seed)
    lines = ["session_id,item_id,timestamp_ms,event_type"]
    for session in range(sessions):
        item, start = rng.integers(items), 1_700_000_000_000 + session * 1000
        for step in range(rng.integers(2, 8)):
            item = (item + rng.integers(1, 3)) % items
            lines.append(f"s{session},i{item},{start + step},view")
            lines.append(f"s{session},i{rng.integers(items)},{start + step},impression")
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


@pytest.mark.parametrize("final", ["tune", "all", "evaluated"])
def test_train_publishes_and_evaluate_reads_it(tmp_path: Path, capsys: pytest.CaptureFixture[str], final: str) -> None:
    log, test = write_log(tmp_path / "log.csv", 300, 0), write_log(tmp_path / "test.csv", 50, 1)
    assert train_cli.main(["--data", log, "--model-uri", "models", "--final", final, *FAST]) == 0
    told = last_line(capsys)
    assert told["version"] == "1"
    assert told["recall20"] > 1.5 * told["popularity_recall20"]
    assert told["items"] == 60
    manifest = FileModelRegistry("models").load("1").manifest
    assert manifest.metrics["mrr20"] == told["mrr20"]
    assert manifest.lineage["final"] == final
    assert manifest.config["model"] == {"width": 16}
    assert evaluate_cli.main(["--model-uri", "models", "--test", test, "--train", log]) == 0
    found = last_line(capsys)
    assert found["version"] == "1"
    assert found["recall20"] > 0.8
    assert found["recall20"] > 1.5 * found["popularity_recall20"]


def test_evaluate_trains_on_the_one_log_and_ranks_the_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, test = write_log(tmp_path / "log.csv", 300, 0), write_log(tmp_path / "test.csv", 50, 1, items=70)
    assert evaluate_cli.main(["--train", log, "--test", test, *FAST]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out.splitlines()[-1])
    assert found["items"] == 60  # of the test's 70, those that training has seen
    assert {"recall20", "mrr20", "events", "train_s", "eval_s", "popularity_recall20"} <= found.keys()
    assert "300 sessions" in captured.err


def test_an_interrupted_run_goes_on_to_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = write_log(tmp_path / "log.csv", 200, 0)
    arguments = ["--data", log, *FAST]
    assert train_cli.main([*arguments, "--model-uri", "whole", "--checkpoints", "a"]) == 0

    def interrupt(report: ProgressReport, progress: Progress) -> None:
        if progress.epoch == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ProgressReport, "training", interrupt)
        assert train_cli.main([*arguments, "--model-uri", "resumed", "--checkpoints", "b"]) == 130
    assert train_cli.main([*arguments, "--model-uri", "resumed", "--checkpoints", "b", "--resume"]) == 0
    assert "going on after epoch 3" in capsys.readouterr().err
    whole, resumed = (FileModelRegistry(uri).load("1") for uri in ("whole", "resumed"))
    assert whole.manifest.fingerprint == resumed.manifest.fingerprint
    assert os.listdir("b") == []  # nothing is left behind once the model is published


def test_both_commands_take_the_types_that_advance_a_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half of the log's events are impressions: here the others advance nothing."""
    log = write_log(tmp_path / "log.csv", 50, 0)
    monkeypatch.setenv("ADVANCE_EVENT_TYPES", "view")
    monkeypatch.setenv("IGNORE_EVENT_TYPES", "")
    assert train_cli.main(["--data", log, "--model-uri", "models", "--width", "4", "--epochs", "1"]) == 0
    views = (tmp_path / "log.csv").read_text().count(",view")
    assert last_line(capsys)["trained_events"] == views
    monkeypatch.setenv("ADVANCE_EVENT_TYPES", "buy")
    assert evaluate_cli.main(["--train", log, "--test", log, "--width", "4", "--epochs", "1"]) == 2
    assert "no next item to learn" in capsys.readouterr().err


def test_resume_with_other_settings_starts_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = write_log(tmp_path / "log.csv", 50, 0)
    assert evaluate_cli.main(["--train", log, "--test", log, *FAST]) == 0
    assert evaluate_cli.main(["--train", log, "--test", log, *FAST, "--seed", "5", "--resume"]) == 0
    assert "no checkpoint of this run" in capsys.readouterr().err


SINGLE = "session_id,item_id,timestamp_ms\na,x,1\nb,y,2\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "none.csv"], "none.csv: no such file"),
        (["--data", "single.csv"], "single.csv: no session of two events or more"),
        (["--data", "log.csv", "--format", "netflix"], "unknown format 'netflix'"),
        (["--data", "log.csv", "--column", "item_id=nope"], "no column 'nope'"),
        (["--data", "log.csv", "--column", "item_id"], "expected NAME=VALUE"),
        (["--data", "log.csv", "--epochs", "-1"], "epochs is -1, must be 0 to 10000"),
        (["--data", "log.csv", "--set", "speed=9"], "no such setting"),
        (["--data", "log.csv", "--set", "truncate=long"], "not a number"),
        (["--data", "log.csv", "--model-uri", "log.csv/models"], "model registry log.csv/models: "),
        (["--data", "log.csv", "--model-uri", "nowhere://x"], "MODEL_URI nowhere://x"),
    ],
)
def test_bad_input_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    write_log(tmp_path / "log.csv", 5, 0)
    (tmp_path / "single.csv").write_text(SINGLE)
    assert train_cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--test", "log.csv"], "--train is needed"),
        (["--test", "log.csv", "--model-uri", "empty"], "no model has been published yet"),
        (["--test", "log.csv", "--model-uri", "empty", "--version", "7"], "no model version 7"),
        (["--train", "log.csv", "--test", "single.csv"], "single.csv: no session of two events or more"),
    ],
)
def test_bad_input_to_evaluate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    write_log(tmp_path / "log.csv", 5, 0)
    (tmp_path / "single.csv").write_text(SINGLE)
    assert evaluate_cli.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_catalogue_of_one_item_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [f"s{i // 3},only,{i + 1}" for i in range(30)]
    (tmp_path / "log.csv").write_text("\n".join(["session_id,item_id,timestamp_ms", *lines]))
    assert train_cli.main(["--data", "log.csv", "--model-uri", "models", *FAST]) == 0
    assert last_line(capsys)["recall20"] == 1.0


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path / "run")
    assert store.last() is None
    state = TrainerState({"x": torch.arange(3.0)}, {"epoch": 2, "done": 7})
    store.save(state)
    found = store.last()
    assert found is not None
    assert found.meta == state.meta
    assert torch.equal(found.tensors["x"], state.tensors["x"])
    store.path.write_bytes(store.path.read_bytes()[:20])
    with pytest.raises(ModelDamaged, match=str(store.path)):
        store.last()
    store.clear()
    assert not store.path.parent.exists()
