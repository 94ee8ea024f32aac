"""A training in process, on the twins in memory: what it publishes, and what becomes of interruptions."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from services.retrainer import training
from services.retrainer.budget import EVENT_BYTES, FIXED_BYTES, MODEL_COPIES, MemoryBudget, TimeBudget
from services.retrainer.cold_start import ColdStart
from services.retrainer.progress import ProgressReport
from services.retrainer.training import Training
from services.retrainer.training_window import _fitting, _worth_reading, rows_to_ask
from shared.adapters.checkpoints import Checkpoints
from shared.adapters.memory_registry import MemoryModelRegistry
from shared.adapters.memory_session_log import MemorySessionLog
from shared.adapters.registry import FileModelRegistry
from shared.adapters.settings import TrainSettings
from shared.core.errors import ModelDamaged, SettingsInvalid, Unavailable
from shared.core.events import EventRules, Interaction
from shared.core.session_log_port import LogBatch
from shared.model.network import Weights
from shared.model.train import Progress
from shared.model.warm import warm_start
from tests.unit.test_model_dataset import sessions_of

START = 1_700_000_000_000


class Recorder:
    """A Reporter that remembers."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.trained: list[Progress] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def training(self, progress: Progress) -> None:
        self.trained.append(progress)

    def ranking(self, done: int, total: int) -> None:
        pass


class Shop:
    """A session log that grows: each session walks through ``items`` items in steps of ``stride``, more or less."""

    def __init__(self) -> None:
        self.log = MemorySessionLog()
        self.rng = np.random.default_rng(0)
        self.offset = 0
        self.users = 0

    def sessions(self, count: int, stride: int = 1, first: int = 0, items: int = 40, dismissals: int = 0) -> "Shop":
        events = []
        for _ in range(count):
            user, item = f"u{self.users}", int(self.rng.integers(items))
            self.users += 1
            for _ in range(int(self.rng.integers(3, 9))):
                ts = START + 1000 * (self.offset + len(events))
                item = (item + stride + int(self.rng.integers(2))) % items
                events.append(Interaction(user, f"i{first + item}", "view", ts))
                events += [Interaction(user, f"i{first + (item + 20) % items}", "dismiss", ts)] * dismissals
        after = self.offset + len(events)
        self.log.append(LogBatch(0, 1, self.offset, after, events, range(self.offset, after), START))
        self.offset = after
        return self


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def settings(tmp_path: Path) -> TrainSettings:
    return TrainSettings(
        train_dir=str(tmp_path / "training"), train_width=16, train_min_sessions=50, train_memory_mb=0, train_epochs=15
    )


def train(shop: Shop, registry: Any, settings: TrainSettings, report: Recorder | None = None) -> dict[str, Any]:
    job = Training(settings, EventRules(), shop.log, registry, report or Recorder())  # type: ignore[arg-type]
    outcome = job.run()
    assert outcome is not None
    json.dumps(outcome)
    return outcome


def test_from_nothing_to_a_first_model_to_a_better_one(settings: TrainSettings) -> None:
    shop, registry = Shop(), MemoryModelRegistry()
    assert train(shop, registry, settings) == {
        "outcome": "empty window", "published": None, "promoted": False, "gate": None,
        "events": 0, "sessions": 0, "needed": 50,
    }  # fmt: skip
    shop.sessions(49)
    assert train(shop, registry, settings)["outcome"] == "too few sessions"
    assert registry.versions() == []

    shop.sessions(400)
    first = train(shop, registry, settings)
    assert (first["outcome"], first["published"], first["promoted"], first["parent"]) == ("trained", "1", True, None)
    assert first["gate"]["champion"] is None
    assert first["gate"]["challenger"]["recall20"] > 1.2 * first["gate"]["popularity"]["recall20"]
    manifest = registry.load("1").manifest
    assert manifest.metrics["gate"] == first["gate"]
    assert manifest.lineage["final"] == "tune"
    assert manifest.lineage["newest_event"] == START + 1000 * (shop.offset - 1)

    shop.sessions(400, stride=7, first=30)  # another taste, and 30 items that nobody had seen
    second = train(shop, registry, settings)
    assert (second["published"], second["promoted"], second["parent"]) == ("2", True, "1")
    gate = second["gate"]
    assert gate["decision"] == "promoted"
    assert gate["champion"]["version"] == "1"
    assert gate["challenger"]["recall20"] > gate["champion"]["recall20"] + 0.1
    assert gate["over_champion"]["confidence"] == 1.0
    grown = registry.load("2")
    assert grown.items[:40] == registry.load("1").items  # indexes stay
    assert set(grown.items[40:]) == {f"i{n}" for n in range(40, 70)}
    assert registry.current() == "2"
    assert sorted(p.name for p in Path(settings.train_dir).iterdir()) == [".lock"]


def test_without_anything_new_the_champion_stays_and_the_challenger_is_there_to_see(settings: TrainSettings) -> None:
    shop, registry = Shop().sessions(400), MemoryModelRegistry()
    settings = settings.model_copy(update={"train_epochs": 0})
    train(shop, registry, settings)
    again = train(shop, registry, settings)
    assert (again["published"], again["promoted"], registry.current()) == ("2", False, "1")
    assert again["gate"]["decision"] == "kept back"
    assert "better than champion 1 by 0.5% with confidence" in again["gate"]["reason"]
    assert registry.manifest("2").metrics["gate"] == again["gate"]
    assert registry.manifest("2").lineage["final"] == "evaluated"


def test_noise_does_not_pass_the_gate(settings: TrainSettings) -> None:
    """Nothing follows from anything: popularity is all there is, and that is no reason to serve a model."""
    shop, registry = Shop(), MemoryModelRegistry()
    rng = np.random.default_rng(1)
    events = [Interaction(f"u{n // 5}", f"i{int(500 * rng.random() ** 3)}", "view", START + n) for n in range(3000)]
    shop.log.append(LogBatch(0, 1, 0, 3000, events, range(3000), START))
    outcome = train(shop, registry, settings)
    assert (outcome["published"], outcome["promoted"], registry.current()) == ("1", False, None)
    assert "popularity" in outcome["gate"]["reason"]


def test_dismissals_in_the_log_reach_the_loss(settings: TrainSettings) -> None:
    shop, registry, report = Shop().sessions(200, dismissals=1), MemoryModelRegistry(), Recorder()
    told = train(shop, registry, settings, report)
    assert told["events"] == shop.offset
    assert any("dismissals" in line and ", 0 dismissals" not in line for line in report.said)


def test_impressions_do_not_crowd_out_the_window(settings: TrainSettings) -> None:
    shop = Shop().sessions(300)
    shown = [Interaction("u0", "i1", "impression", START + n) for n in range(50_000)]
    shop.log.append(LogBatch(1, 1, 0, 50_000, shown, range(50_000), START))
    told = train(shop, MemoryModelRegistry(), settings.model_copy(update={"train_window_events": 1500}))
    assert told["events"] == 1500


def test_one_event_sent_twice_does_not_hide_the_rest_of_the_log(settings: TrainSettings) -> None:
    """It is taken out of what was read, and that the rows are fewer then does not tell that there are no more."""
    shop = Shop().sessions(300)
    shown = [Interaction("u0", "i1", "impression", START + 10**9 + n) for n in range(50_000)]
    shown[-1] = shown[-2] = Interaction("u0", "i1", "impression", START + 10**9 + 49_998, event_id="again")
    shop.log.append(LogBatch(1, 1, 0, 50_000, shown, range(50_000), START))
    told = train(shop, MemoryModelRegistry(), settings.model_copy(update={"train_window_events": 1500}))
    assert told["events"] == 1500
    # More rows than a first look takes: 50 for each session.
    assert ColdStart(shop.log, EventRules(), 200, 500_000).enough()


def test_one_event_ahead_of_the_clock_does_not_make_all_others_old(settings: TrainSettings) -> None:
    shop, registry = Shop().sessions(300), MemoryModelRegistry()
    now = int(time.time() * 1000)
    tomorrow = [Interaction("u0", f"i{n}", "view", now + 12 * 3_600_000) for n in (1, 2)]
    shop.log.append(LogBatch(1, 1, 0, 2, tomorrow, range(2), now))
    train(shop, registry, settings)
    first = registry.load("1").manifest.lineage
    assert first["newest_event"] > first["trained_at"]
    read: list[int] = []
    seen = training.read_material

    def spied(log: Any, rules: Any, champion: Any, *args: Any, **kwargs: Any) -> Any:
        read.append(champion.newest_event)
        return seen(log, rules, champion, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "read_material", spied)
        train(shop, registry, settings)
    assert read == [first["trained_at"]]


def test_a_window_that_does_not_fit_in_memory_shrinks_and_says_so(settings: TrainSettings) -> None:
    shop, report, registry = Shop().sessions(1500), Recorder(), MemoryModelRegistry()
    job = Training(settings, EventRules(), shop.log, registry, report)  # type: ignore[arg-type]
    job._memory = MemoryBudget(FIXED_BYTES + 2000 * EVENT_BYTES + 40 * (64 * MODEL_COPIES + 600), 0)
    told = job.run()
    assert told is not None
    assert (told["shrunk_to"], told["shrunk_from"]) == (told["events"], 500_000)
    assert 1900 < told["events"] <= 2000
    assert any("do not fit in TRAIN_MEMORY_MB" in line for line in report.said)
    with pytest.raises(SettingsInvalid, match="TRAIN_MEMORY_MB is 1: 40 items of width 16 need at least"):
        train(shop, registry, settings.model_copy(update={"train_memory_mb": 1}))


def test_a_window_of_ever_new_items_shrinks_until_these_fit() -> None:
    frame = pl.DataFrame({"item_id": [f"i{n}" for n in range(50_000)]})
    memory = MemoryBudget(FIXED_BYTES + 20_000 * (64 * MODEL_COPIES + 600 + EVENT_BYTES), 0)
    assert 15_000 < _fitting(frame, None, memory, 16).height <= 20_000
    assert _fitting(frame, None, MemoryBudget(0, 0), 16).height == 50_000


def test_the_time_budget_ends_training_within_an_epoch(settings: TrainSettings) -> None:
    shop, registry, report = Shop().sessions(2000), MemoryModelRegistry(), Recorder()
    job = Training(settings, EventRules(), shop.log, registry, report)  # type: ignore[arg-type]
    ticks = iter(range(10**9))
    job._budget = TimeBudget(100.0, lambda: float(next(ticks)))  # each look at the clock takes a second
    told = job.run()
    assert told is not None
    assert told["out_of_time"]
    epoch = 1 + told["epochs"]
    cut_short = [p for p in report.trained if p.epochs > 3 and p.epoch == epoch]  # the newest are learnt in 3 epochs
    assert 60 < len([p for p in report.trained if p.epochs > 3]) < 66
    assert cut_short[-1].events < epoch * cut_short[-1].total_events / cut_short[-1].epochs
    assert told["total_s"] <= 110
    assert told["gate"]["challenger"]["recall20"] > told["gate"]["popularity"]["recall20"]


def test_time_is_shared_out() -> None:
    now = [0.0]
    budget = TimeBudget(100.0, lambda: now[0])
    now[0] = 15.0
    spent = budget.until(0.65)
    assert spent() == 0.0
    now[0] = 40.0
    assert spent() == 0.5
    assert budget.until(0.3)() == 1.0
    assert TimeBudget(0.0, lambda: 5.0).until(0.65)() == 0.0


@pytest.mark.parametrize(
    ("total", "learnt", "most", "expected"),
    [
        (100_000, 0, 20_000, 5000),  # a first model: one in twenty
        (10_000, 0, 20_000, 2000),
        (1000, 0, 20_000, 200),
        (100_000, 60_000, 20_000, 10_000),  # a quarter of what is new
        (100_000, 99_000, 20_000, 500),
        (100_000, 60_000, 700, 700),
        (600, 599, 20_000, 300),
    ],
)
def test_how_many_events_are_asked(total: int, learnt: int, most: int, expected: int) -> None:
    assert rows_to_ask(np.arange(1, total + 1), learnt, most) == expected


@pytest.mark.parametrize(
    ("total", "learnt", "changed", "expected"),
    [
        (200_000, 190_000, 0, 50_000),
        (200_000, 100_000, 0, 100_000),
        (200_000, 190_000, 199_000, 20_000),
        (200_000, 190_000, 192_000, 32_000),
        (200_000, 100_000, 110_000, 100_000),
        (200_000, 0, 0, 200_000),
    ],
)
def test_how_much_a_champion_learns_on_from(total: int, learnt: int, changed: int, expected: int) -> None:
    assert _worth_reading(np.arange(1, total + 1), learnt, changed) == expected


class Killed(BaseException):
    """As SIGKILL: nothing runs after it."""


def interrupt_epochs(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """The process dies right after its checkpoint number ``after``."""
    save, saved = Checkpoints.save, []

    def dying(store: Checkpoints, state: Any) -> None:
        save(store, state)
        saved.append(1)
        if len(saved) == after:
            raise Killed

    monkeypatch.setattr(Checkpoints, "save", dying)


def test_interrupted_training_goes_on_to_the_same_model(
    settings: TrainSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop, report, registry = Shop().sessions(300), Recorder(), MemoryModelRegistry()
    whole = MemoryModelRegistry()
    train(shop, whole, settings.model_copy(update={"train_dir": str(tmp_path / "other")}))
    with monkeypatch.context() as patch:
        interrupt_epochs(patch, 3)
        with pytest.raises(Killed):
            train(shop, registry, settings)
    assert registry.versions() == []
    assert train(shop, registry, settings, report)["promoted"]
    assert "going on after epoch 3" in report.said
    assert registry.manifest("1").fingerprint == whole.manifest("1").fingerprint


def test_events_that_came_since_are_not_in_the_window_of_the_interrupted_training(
    settings: TrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop, report, registry = Shop().sessions(300), Recorder(), MemoryModelRegistry()
    with monkeypatch.context() as patch:
        interrupt_epochs(patch, 2)
        with pytest.raises(Killed):
            train(shop, registry, settings)
    shop.sessions(20)
    train(shop, registry, settings, report)
    assert "going on after epoch 2" in report.said


def test_a_log_that_changed_below_begins_anew(settings: TrainSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    shop, report, registry = Shop().sessions(300), Recorder(), MemoryModelRegistry()
    with monkeypatch.context() as patch:
        interrupt_epochs(patch, 2)
        with pytest.raises(Killed):
            train(shop, registry, settings)
    late = Interaction("u7", "i1", "view", START + 5)
    shop.log.append(LogBatch(1, 1, 0, 1, [late], [0], START))
    assert train(shop, registry, settings, report)["promoted"]
    assert not any("going on" in line for line in report.said)
    assert any("begins anew" in line for line in report.said)


def test_killed_between_version_and_pointer_the_next_run_ends_what_was_begun(
    settings: TrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop, registry = Shop().sessions(300), MemoryModelRegistry()
    publish = registry.publish

    def dying(*args: Any, **named: Any) -> Any:
        publish(*args, **named | {"make_current": False})
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(registry, "publish", dying)
        with pytest.raises(Killed):
            train(shop, registry, settings)
    assert registry.current() is None
    told = train(shop, registry, settings)
    assert (told["published"], told["promoted"], registry.current()) == ("1", True, "1")
    assert len(registry.versions()) == 1
    assert train(shop, registry, settings)["published"] == "2"  # the plan was cleared


def test_a_version_that_was_rolled_back_is_not_put_in_service_again(
    settings: TrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop, registry = Shop().sessions(300), MemoryModelRegistry()
    publish = registry.publish

    def dying(*args: Any, **named: Any) -> Any:
        publish(*args, **named | {"make_current": False})
        registry.note("rollback", {"version": "1"})
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(registry, "publish", dying)
        with pytest.raises(Killed):
            train(shop, registry, settings)
    assert not train(shop, registry, settings)["promoted"]
    assert registry.current() is None


def test_a_champion_that_changed_meanwhile_is_not_replaced(
    settings: TrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop, registry = Shop().sessions(400), MemoryModelRegistry()
    train(shop, registry, settings)
    shop.sessions(400, stride=7)
    model = registry.load("1")

    class Meanwhile(Recorder):
        def say(self, text: str) -> None:
            if "the gate" in text:
                registry.publish(model.weights, model.items)

    told = train(shop, registry, settings, Meanwhile())
    assert (told["published"], told["promoted"], registry.current()) == ("3", False, "2")
    assert told["gate"]["reason"] == "version 2 came into service meanwhile, against which it was not measured"


def test_weights_that_are_not_finite_are_not_published(
    settings: TrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop, registry = Shop().sessions(300), MemoryModelRegistry()

    def broken(parent: Weights, *_: Any) -> Weights:
        return {name: tensor * float("nan") for name, tensor in parent.items()}

    train(shop, registry, settings)
    monkeypatch.setattr("services.retrainer.challenger.warm_start", broken)
    with pytest.raises(ModelDamaged, match="not finite, in item_embedding: nothing is published"):
        train(shop, registry, settings)
    assert [m.version for m in registry.versions()] == ["1"]


def test_a_damaged_champion_is_replaced_by_a_first_model(settings: TrainSettings, tmp_path: Path) -> None:
    shop, registry, report = Shop().sessions(300), FileModelRegistry(str(tmp_path / "models")), Recorder()
    train(shop, registry, settings)
    (tmp_path / "models" / "versions" / "1" / "weights.safetensors").write_bytes(b"no weights")
    told = train(shop, registry, settings, report)
    assert (told["published"], told["promoted"], told["parent"], registry.current()) == ("2", True, None, "2")
    assert any("the champion cannot be read" in line for line in report.said)


def test_a_champion_that_somebody_deleted_is_replaced_by_a_first_model(settings: TrainSettings, tmp_path: Path) -> None:
    shop, registry = Shop().sessions(300), FileModelRegistry(str(tmp_path / "models"))
    train(shop, registry, settings)
    shutil.rmtree(tmp_path / "models" / "versions" / "1")
    told = train(shop, registry, settings)
    assert (told["promoted"], told["parent"], registry.current()) == (True, None, told["published"])


def test_a_checkpoint_that_cannot_be_read_costs_no_training(
    settings: TrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop, registry, report = Shop().sessions(300), MemoryModelRegistry(), Recorder()
    with monkeypatch.context() as patch:
        interrupt_epochs(patch, 2)
        with pytest.raises(Killed):
            train(shop, registry, settings)
    (kept,) = Path(settings.train_dir).rglob("last.safetensors")
    kept.write_bytes(kept.read_bytes()[:-100])
    assert train(shop, registry, settings, report)["published"] == "1"
    assert any(line.startswith("training begins anew: checkpoint") for line in report.said)


def test_one_training_at_a_time(settings: TrainSettings) -> None:
    shop, registry = Shop().sessions(100), MemoryModelRegistry()
    job = Training(settings, EventRules(), shop.log, registry, Recorder())  # type: ignore[arg-type]
    with job._plans.alone(), pytest.raises(Unavailable, match="another training works there"):
        train(shop, registry, settings)


def test_without_room_for_checkpoints_training_goes_on(
    settings: TrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(store: Checkpoints, state: Any) -> None:
        raise Unavailable("No space left on device")

    monkeypatch.setattr(Checkpoints, "save", full)
    report = Recorder()
    assert train(Shop().sessions(300), MemoryModelRegistry(), settings, report)["promoted"]
    assert "no checkpoint: No space left on device" in report.said


def test_new_items_begin_near_their_neighbours() -> None:
    weights = {
        "item_embedding": torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]),
        "item_bias": torch.zeros(4),
        "gru.weight_ih_l0": torch.zeros(6, 2),
        "gru.weight_hh_l0": torch.zeros(6, 2),
        "gru.bias_ih_l0": torch.zeros(6),
        "gru.bias_hh_l0": torch.zeros(6),
    }
    sessions = sessions_of(*([[0, 4]] * 5 + [[4, 1]] * 5), [5], [2])
    grown = warm_start(weights, sessions, 6, seed=1)
    plain = warm_start(weights, sessions_of([0]), 6, seed=1)
    assert torch.equal(grown["item_embedding"][:4], weights["item_embedding"])
    moved = grown["item_embedding"] - plain["item_embedding"]
    assert moved[4].tolist() == pytest.approx([5 / 12, 5 / 12])
    assert moved[5].tolist() == [0, 0]  # [5] and [2] are sessions of their own


def test_a_report_of_a_process_beside_the_first_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressReport(quiet=True) as report:
        report.say("hello")
    assert capsys.readouterr().err == ""
