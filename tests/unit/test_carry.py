"""make carry, in process."""

import csv
import json
import random
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from services.retrainer import carry_cli
from services.retrainer.carry_cli import places_of, ranks_of
from shared.model.config import TrainConfig
from shared.model.dataset import build_sessions, catalogue_of
from shared.model.fit import fit
from tests.unit.test_model_commands import FAST


def write_returning(path: Path, users: int) -> str:
    """Each user comes twice: at first for one of two markers, later for the hub and then what goes with the marker."""
    rng = random.Random(3)
    rows = []
    for user in range(users):
        kind = rng.choice("ab")
        for session, items in (("1", [f"marker-{kind}", "lobby"]), ("2", ["hub", f"reward-{kind}"])):
            for step, item in enumerate(items):
                rows.append((f"{user}-{session}", f"u{user}", item, user * 100 + int(session) * 10 + step))
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("session_id", "user_id", "item_id", "ts"))
        writer.writerows((*row[:3], 1_700_000_000_000 + 1000 * row[3]) for row in rows)
    return str(path)


def test_a_log_in_which_the_past_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = write_returning(tmp_path / "log.csv", 300)
    assert carry_cli.main(["--data", log, *FAST, "--epochs", "30"]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    ways = json.loads(last)["ways"]
    assert ways["afresh"]["returning"]["mrr20"] < 0.8
    assert ways["carried"]["returning"]["mrr20"] > 0.95
    assert "first" not in ways["afresh"]
    assert ways["carried"]["first"]["mrr20"] > 0.95  # the hub
    assert {name: way["inside"]["events"] for name, way in ways.items()} == dict.fromkeys(ways, 60)
    assert "mixed" in "\n".join(table)


def test_a_log_without_returning_users_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log.csv"
    path.write_text(
        "session_id,user_id,item_id,ts\n" + "".join(f"s{n // 3},u{n // 3},i{n % 5},{n}\n" for n in range(90))
    )
    assert carry_cli.main(["--data", str(path), *FAST]) == 2
    assert "no user of the newest tenth has an earlier session" in capsys.readouterr().err


LOG = pl.DataFrame(
    {
        "session_id": ["a", "b", "a", "c", "c", "b", "d"],
        "user_id": ["u", "v", "u", "u", "u", "v", "v"],
        "item_id": ["x", "y", "y", "x", "z", "x", "y"],
        "ts": list(range(7)),
    }
)


def test_places() -> None:
    inside, returning, first = places_of(LOG, 3)
    assert np.flatnonzero(inside).tolist() == [4, 5]
    assert np.flatnonzero(returning).tolist() == [4]
    assert np.flatnonzero(first).tolist() == [3, 6]


def test_ranks_belong_to_their_rows() -> None:
    catalogue = catalogue_of(LOG)
    weights = fit(TrainConfig(epochs=1), build_sessions(LOG, catalogue), len(catalogue)).weights
    assert np.flatnonzero(ranks_of(weights, LOG, catalogue, "session", 0)).tolist() == [2, 4, 5]
    assert np.flatnonzero(ranks_of(weights, LOG, catalogue, "user", 0)).tolist() == [2, 3, 4, 5, 6]
    assert np.flatnonzero(ranks_of(weights, LOG, catalogue, "user", 4)).tolist() == [4, 5, 6]


@pytest.mark.parametrize("flag", [["--sequence", "user"], ["--resume"]], ids=["sequence", "resume"])
def test_a_flag_that_could_change_nothing_is_refused(flag: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        carry_cli.main(["--data", "log.csv", *flag])
    assert flag[0] in capsys.readouterr().err
