"""Prequential replay of a log: what is tested, what is known when, and what the policies do."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
import torch

from services.retrainer import adapt_cli
from services.retrainer.adapt_fold import FoldedItems, Shares
from services.retrainer.adapt_learn import Learning, first_model
from services.retrainer.adapt_policies import HOUR_MS, Every, Never, OnDrift
from services.retrainer.adapt_replay import ReplayRules, replay
from services.retrainer.adapt_score import Catalogue, ranks
from services.retrainer.adapt_states import Live, States
from services.retrainer.adapt_stream import stream_of
from shared.core.drift import DriftRules
from shared.core.errors import LogUnreadable
from shared.model.config import ModelConfig, TrainConfig
from shared.model.network import NO_REPEATS, Network

START = 1_600_000_000_000
RULES = DriftRules(least_events=200, cooldown_s=600.0, delta=0.002, least_fall=0.1)


def log_of(rows: list[tuple[str, str, str, int]]) -> pl.DataFrame:
    columns = {"session_id": pl.String, "user_id": pl.String, "item_id": pl.String, "ts": pl.Int64}
    return pl.DataFrame(rows, schema=columns, orient="row")


def random_log(events: int, users: int, items: int, seed: int) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(events):
        user = int(rng.integers(users))
        item = int(rng.integers(1 + items * number // events + 3))
        rows.append((f"{user}-{number // 200}", f"{user}", f"i{item}", START + number * 1000))
    return log_of(rows)


def shifting_log(hours: int, shift_at: int, new_places: tuple[int, ...] = tuple(range(10)), seed: int = 1):
    """Walks along rings of ten items; from ``shift_at`` (hours) on, those places of all rings hold new items."""
    rng = np.random.default_rng(seed)
    rows = []
    for session in range(hours * 40):
        hour, minute = divmod(session, 40)
        ring, place = int(rng.integers(5)), int(rng.integers(10))
        for step in range(6):
            at = START + hour * HOUR_MS + minute * 90_000 + step * 1000
            now = (place + step) % 10
            era = "new" if hour >= shift_at and now in new_places else "old"
            rows.append((f"s{session}", f"u{session}", f"{era}-{ring}-{now}", at))
    return log_of(rows).sort("ts", maintain_order=True)


def weights_of(items: int, width: int = 8, seed: int = 1) -> dict[str, torch.Tensor]:
    weights = Network(items, width, torch.Generator().manual_seed(seed)).weights()
    weights["item_bias"] = torch.randn(items, generator=torch.Generator().manual_seed(seed))
    return weights


def test_a_stream_numbers_items_by_first_appearance_and_tests_all_but_the_first_of_a_session():
    rows = [("s1", "ann", "b", 1), ("s2", "bob", "a", 2), ("s1", "ann", "a", 3), ("s3", "ann", "c", 4)]
    stream = stream_of(log_of([*rows, ("s3", "ann", "b", 5)]), "log")
    assert stream.items.tolist() == [0, 1, 1, 2, 0]
    assert stream.seen.tolist() == [1, 2, 2, 3, 3]
    assert stream.tested.tolist() == [False, False, True, False, True]
    items, lengths = stream.history(np.array([0, 4]), 2)
    assert lengths.tolist() == [0, 2]
    assert items[1].tolist() == [1, 2]
    newest = stream.window(5, 3)
    assert [newest.items[a:b].tolist() for a, b in zip(newest.starts, newest.starts[1:], strict=False)] == [[1, 2, 0]]


def test_a_log_without_a_second_event_is_refused():
    with pytest.raises(LogUnreadable, match="my log"):
        stream_of(log_of([("a", "ann", "x", 1), ("b", "bob", "x", 2)]), "my log")


def test_slices_cover_every_event_once_within_one_span_of_the_clock():
    stream = stream_of(random_log(500, 20, 30, 2), "log")
    found = list(stream.slices(37, 60_000, 25))
    assert [event for begin, end in found for event in range(begin, end)] == list(range(37, 500))
    assert max(end - begin for begin, end in found) == 25
    assert all(len(set((stream.ts[b:e] // 60_000).tolist())) == 1 for b, e in found)


def test_states_in_slices_are_those_of_one_event_after_the_other_also_after_a_swap():
    stream = stream_of(random_log(600, 15, 40, 3), "log")
    models = [Live(weights_of(20, seed=1)), Live(weights_of(35, seed=2))]
    states = States(stream, models[0], recent=5)
    for model, (begin, end), first in ((models[0], (0, 300), 0), (models[1], (300, 600), 300)):
        if model is models[1]:
            states.swap(model)
        got = torch.cat([states.advance(at, min(at + 70, end)) for at in range(begin, end, 70)])
        for event in range(begin, end):
            user = stream.users[event]
            mine = [e for e in range(event) if stream.users[e] == user]
            earlier, since = [e for e in mine if e < first], [e for e in mine if e >= first]
            hidden = torch.zeros(1, 8)
            for e in [*earlier[-5:], *since]:
                if stream.items[e] < model.items:
                    hidden = model.step(torch.tensor([int(stream.items[e])]), hidden)
            torch.testing.assert_close(got[event - begin], hidden[0], rtol=1e-4, atol=1e-5)


def test_a_live_model_steps_as_torch_does():
    weights = weights_of(30)
    network, model = Network.from_weights(weights), Live(weights)
    items = torch.tensor([3, 17, 29])
    hidden = torch.randn(3, 8, generator=torch.Generator().manual_seed(5))
    _, expected = network.gru(weights["item_embedding"][items][None], hidden[None])
    torch.testing.assert_close(model.step(items, hidden), expected[0].detach(), rtol=1e-5, atol=1e-6)


def test_ranks_count_the_whole_catalogue_with_and_without_the_folded_in_rows():
    generator = torch.Generator().manual_seed(3)
    embedding, states = torch.randn(2500, 8, generator=generator), torch.randn(700, 8, generator=generator)
    bias = torch.randn(2500, generator=generator)
    bias[2400:] = -torch.inf  # not to be ranked yet
    targets = torch.randint(0, 2600, (700,), generator=generator)  # some are beyond the catalogue
    found = ranks(Catalogue(embedding, bias, 2000), states, targets)
    scores = (states.double() @ embedding.double().T) + bias.double()
    for row, target in enumerate(targets.tolist()):
        for known, got in ((2000, found.plain), (2500, found.folded)):
            rank = int((scores[row, :known] >= scores[row, target]).sum()) if target < min(known, 2400) else 0
            assert got[row] == (rank if rank <= 20 else 0)


def test_an_item_that_is_left_out_has_no_rank_and_takes_no_place():
    catalogue = Catalogue(torch.tensor([[3.0], [2.0], [1.0], [4.0]]), torch.zeros(4), 3)
    states, targets = torch.ones(4, 1), torch.tensor([2, 2, 0, 3])
    found = ranks(catalogue, states, targets, torch.tensor([0, -1, 0, 1]))
    assert found.plain.tolist() == [2, 3, 0, 0]
    assert found.folded.tolist() == [3, 4, 0, 1]


def test_what_is_left_out_is_the_last_item_that_the_model_knows():
    rows = [("s1", "ann", "a", 1), ("s2", "bob", "b", 2), ("s1", "ann", "c", 3), ("s1", "ann", "b", 4)]
    stream = stream_of(log_of(rows), "log")  # items a, b, c; the model knows a and b
    events = np.arange(4)
    assert States(stream, Live(weights_of(2)), recent=5).current(events).tolist() == [-1] * 4
    quiet = {**weights_of(2), NO_REPEATS: torch.ones(1)}
    assert States(stream, Live(quiet), recent=5).current(events).tolist() == [-1, -1, 0, 0]


def test_ties_count_against_the_chosen_item():
    catalogue = Catalogue(torch.ones(30, 4), torch.zeros(30), 30)
    assert ranks(catalogue, torch.ones(1, 4), torch.tensor([0])).folded.tolist() == [0]
    few = Catalogue(torch.ones(7, 4), torch.zeros(7), 7)
    assert ranks(few, torch.ones(1, 4), torch.tensor([0])).folded.tolist() == [7]


def test_shares_halve_and_do_not_overflow():
    shares = Shares(2, half_life_ms=1000.0)
    shares.add(np.array([0]), np.array([0]))
    shares.add(np.array([1]), np.array([1000]))
    np.testing.assert_allclose(shares.of(np.array([0, 1])), [1 / 3, 2 / 3])
    shares.add(np.array([0, 1]), np.array([5_000_000, 5_000_000]))
    np.testing.assert_allclose(shares.of(np.array([0, 1])), [0.5, 0.5])


def test_an_item_is_folded_in_after_enough_choices_and_never_more_than_the_limit():
    stream = stream_of(random_log(400, 30, 20, 4), "log")
    model = Live(weights_of(3))
    folded = FoldedItems(stream, 3600.0, minimum=6, keep=4)
    folded.swap(model)
    before = torch.randn(400, 8, generator=torch.Generator().manual_seed(1))
    folded.observe(0, 400, before)
    counts = np.bincount(stream.items, minlength=int(stream.seen[-1]))
    ready = torch.isfinite(folded.catalogue(len(counts), int(stream.ts[-1])).bias)
    assert ready[:3].all()
    assert int(ready[3:].sum()) == 4
    assert all(counts[item] >= 6 for item in torch.nonzero(ready[3:])[:, 0].numpy() + 3)
    folded.swap(model)
    assert int(torch.isfinite(folded.catalogue(len(counts), int(stream.ts[-1])).bias).sum()) == 3


def learning(epochs: int = 2) -> Learning:
    return Learning(TrainConfig(model=ModelConfig(16), epochs=4, batch_events=64), window=1500, epochs=epochs, rate=1.0)


def test_nothing_looks_ahead():
    log = random_log(2400, 40, 60, 5).with_columns(ts=START + pl.int_range(pl.len()) * 6000)
    whole, part = stream_of(log, "log"), stream_of(log.head(1500), "log")
    rules = ReplayRules(300, slice_ms=60_000, least_new=10)
    model = first_model(whole, 300, learning())
    for policy in (lambda: Every(HOUR_MS // 2, int(whole.ts[300])), lambda: OnDrift(DriftRules(50, 0, 0.5, 0.0))):
        long, short = (replay(stream, model, policy(), learning(1), rules) for stream in (whole, part))
        hours = len(short.curve.tested) - 1  # the last one is cut short
        assert hours >= 1
        assert len(long.trainings) > 1
        for name in ("tested", "hits", "reciprocal", "plain_hits"):
            np.testing.assert_array_equal(getattr(long.curve, name)[:hours], getattr(short.curve, name)[:hours])


def test_after_a_shift_training_on_drift_follows_the_oracle_and_costs_less():
    stream = stream_of(shifting_log(hours=30, shift_at=14), "log")
    begin = int(np.searchsorted(stream.ts, START + 6 * HOUR_MS))
    model = first_model(stream, begin, learning())
    rules = ReplayRules(begin, slice_ms=300_000)
    span = int(stream.ts[begin])
    never = replay(stream, model, Never(), learning(), rules)
    drift = replay(stream, model, OnDrift(RULES), learning(), rules)
    oracle = replay(stream, model, Every(HOUR_MS, span), learning(), rules)
    again = replay(stream, model, OnDrift(RULES), learning(), rules)
    shares = {name: o.summary() for name, o in {"never": never, "drift": drift, "oracle": oracle}.items()}
    assert shares["never"]["recall20_without_fold_in"] == pytest.approx(1 / 3, abs=0.05)  # 8 of 24 hours
    assert shares["drift"]["recall20"] > 0.9 * shares["oracle"]["recall20"]
    assert 1 < len(drift.trainings) <= 12 < len(oracle.trainings) == 24
    assert drift.trainings[1][0] >= START + 14 * HOUR_MS  # none before the shift
    assert again.curve.hits.tolist() == drift.curve.hits.tolist()


def test_folding_in_finds_new_items_without_training():
    stream = stream_of(shifting_log(hours=20, shift_at=12, new_places=(0, 3, 6)), "log")
    begin = int(np.searchsorted(stream.ts, START + 12 * HOUR_MS))
    rules = ReplayRules(begin, slice_ms=300_000)
    found = replay(stream, first_model(stream, begin, learning()), Never(), learning(), rules).summary()
    assert found["recall20_without_fold_in"] < 0.7  # three items of ten are unknown
    assert found["recall20"] > 0.75
    assert found["mrr20"] > found["mrr20_without_fold_in"] + 0.1


def test_every_trains_once_in_each_span_that_has_events():
    policy = Every(HOUR_MS, START)
    found = []
    for minutes in (10, 59, 60, 61, 119, 121, 400, 401):
        now = START + minutes * 60_000
        if policy.observe(now, np.zeros(0)):
            policy.trained(now)
            found.append(minutes)
    assert found == [60, 121, 400]


def test_the_command_prints_what_the_contract_says(tmp_path, capsys):
    data, png = tmp_path / "log.parquet", tmp_path / "out" / "adapt.png"
    shifting_log(hours=12, shift_at=8).rename({"ts": "timestamp_ms"}).write_parquet(data)
    flags = ["--policies", "never,drift", "--warmup", "4", "--width", "8", "--epochs", "1", "--jobs", "2"]
    code = adapt_cli.main(["--data", str(data), "--png", str(png), *flags])
    text = capsys.readouterr().out
    assert code == 0
    result = json.loads(text.splitlines()[-1])
    assert set(result["policies"]) == {"never", "drift"}
    for found in result["policies"].values():
        assert {"recall20", "mrr20", "trainings", "train_s"} <= set(found)
    assert result["events"] == 8 * 40 * 5
    assert png.read_bytes().startswith(b"\x89PNG")


def test_the_command_says_what_is_wrong_in_one_line(tmp_path, capsys):
    assert adapt_cli.main(["--data", str(tmp_path / "none.csv")]) == 2
    assert "none.csv" in capsys.readouterr().err
    assert adapt_cli.main(["--data", "x", "--policies", "sometimes"]) == 2
    assert "never" in capsys.readouterr().err
