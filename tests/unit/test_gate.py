"""The paired bootstrap, the cut in time, and the gate's decisions on literal ranks."""

import numpy as np
import polars as pl
import pytest
import torch

from services.retrainer.gate import Asked, GateRules, ask, judge
from shared.model.bootstrap import paired_bootstrap
from shared.model.holdout import cut_newest
from shared.model.network import Network, grow

RULES = GateRules()


def log_of(*rows: tuple[str, str]) -> pl.DataFrame:
    named = [(None, user, item, at, "view") for at, (user, item) in enumerate(rows)]
    schema = dict.fromkeys(("session_id", "user_id", "item_id"), pl.String) | {"ts": pl.Int64, "event_type": pl.String}
    return pl.DataFrame(named, schema=schema, orient="row")


def test_the_confidence_is_that_of_the_difference_of_means() -> None:
    """Differences of mean .1 and deviation 1 over 100 sessions: better with probability Phi(1) = .841."""
    rng = np.random.default_rng(0)
    difference = rng.normal(size=100)
    difference += 0.1 - difference.mean()
    difference = 0.1 + (difference - 0.1) / difference.std()
    right = rng.uniform(50, 60, 100)  # hard and easy sessions: they cancel out
    found = paired_bootstrap(right + difference, right, resamples=20_000)
    assert found.confidence == pytest.approx(0.841, abs=0.015)
    assert found.low is not None
    assert found.high is not None
    assert found.low < (found.gain or 0) < found.high
    assert found == paired_bootstrap(right + difference, right, resamples=20_000)


def test_equal_ones_are_not_better_and_the_margin_is_relative() -> None:
    right = np.full(50, 2.0)
    assert paired_bootstrap(right, right).confidence == 0.0
    assert paired_bootstrap(right * 1.01, right, 0.005).confidence == 1.0
    assert paired_bootstrap(right * 1.01, right, 0.02).confidence == 0.0
    assert paired_bootstrap(right, right * 0).confidence == 1.0
    assert paired_bootstrap(right[:0], right[:0]).confidence == 0.0


def test_sessions_are_drawn_not_events() -> None:
    """One session of 1,000 hits says no more than one coin: without it nothing is better."""
    left = np.concatenate([[1000.0], np.zeros(9)])
    found = paired_bootstrap(left, np.full(10, 0.0), resamples=10_000)
    assert found.confidence == pytest.approx(1 - 0.9**10, abs=0.02)


def asked(challenger: list[int], champion: list[int] | None, popularity: list[int]) -> Asked:
    sequence = np.arange(len(challenger)) // 2
    return Asked(sequence, np.array(challenger), None if champion is None else np.array(champion), np.array(popularity))


@pytest.mark.parametrize(
    ("challenger", "champion", "popularity", "promoted", "reason"),
    [
        ([1] * 40, [30] * 40, [0] * 40, True, "better than champion 7 and popularity"),
        ([1] * 40, None, [21] * 40, True, "better than popularity"),
        ([1] * 40, [1] * 40, [0] * 40, False, "champion 7 by 0.5% with confidence 0.000, less than 0.95"),
        ([0] * 40, [1] * 40, [0] * 40, False, "better than champion 7"),
        ([1] * 40, [0] * 40, [1] * 40, False, "better than popularity with confidence 0.000"),
        ([1] * 22 + [0] * 18, [1] * 20 + [0] * 20, [0] * 40, False, "better than champion 7"),  # one session: chance
        ([1] * 18, [0] * 18, [0] * 18, False, "only 9 users' sequences were asked, 10 are needed"),
        ([1] * 18, None, [0] * 18, True, "better than popularity"),  # anything is better than no model
        ([], [], [], False, "no event to ask about"),
    ],
)
def test_verdicts(
    challenger: list[int], champion: list[int] | None, popularity: list[int], promoted: bool, reason: str
) -> None:
    verdict = judge(asked(challenger, champion, popularity), RULES, "7")
    assert (verdict.promoted, reason in verdict.reason) == (promoted, True), verdict.reason
    assert verdict.numbers["decision"] == ("promoted" if promoted else "kept back")


def test_the_numbers_of_a_verdict() -> None:
    told = judge(asked([1, 2, 0, 21], [4, 0, 0, 0], [0, 0, 0, 1]), RULES, "7").numbers
    assert told["challenger"] == {"recall20": 0.5, "mrr20": 0.375}
    assert told["champion"] == {"version": "7", "recall20": 0.25, "mrr20": 0.0625}
    assert told["popularity"]["recall20"] == 0.25
    assert told["over_champion"]["gain"] == 1.0
    assert (told["events"], told["sessions"], told["margin"], told["required_confidence"]) == (4, 2, 0.005, 0.95)


LOG = log_of(
    ("u", "a"), ("v", "b"), ("u", "b"), ("w", "a"), ("w", "a"),
    ("u", "c"), ("x", "d"), ("x", "a"), ("v", "a"), ("w", "b"),
)  # fmt: skip


def test_the_cut_keeps_history_and_the_known_models_indexes() -> None:
    newest = cut_newest(LOG, 5, ["z", "b"], "user")
    assert newest.catalogue == ["z", "b", "a", "c", "d"]
    assert newest.known == 3
    assert newest.older.items.tolist() == [2, 1, 1, 2, 2]  # u: a b, v: b, w: a a
    told = [s.tolist() for s in np.split(newest.whole.items, newest.whole.starts[1:-1])]
    assert told == [[2, 1, 3], [1, 2], [2, 2, 1], [4, 2]]  # u, v, w, x
    assert newest.asked.tolist() == [False, False, True, False, True, False, False, True, False, True]


def test_a_dismissal_before_the_cut_does_not_mix_up_the_sequences() -> None:
    log = pl.concat(
        [log_of(("y", "a")).with_columns(event_type=pl.lit("dismiss")), LOG, log_of(("y", "a"), ("y", "b"))]
    )
    newest = cut_newest(log, 7, ["z", "b"], "user", ("dismiss",))
    told = [s.tolist() for s in np.split(newest.whole.items, newest.whole.starts[1:-1])]
    assert told == [[2, 1, 3], [1, 2], [2, 2, 1], [4, 2], [2, 1]]
    assert newest.asked.tolist()[-2:] == [False, True]


def test_only_sequences_with_new_events_are_asked_and_learnt() -> None:
    newest = cut_newest(LOG, 2, [], "user")
    assert len(newest.whole) == 2
    assert newest.to_learn().pairs == 3
    long = log_of(*[("u", f"i{n % 5}") for n in range(30)])
    assert len(cut_newest(long, 3, [], "user").to_learn().items) == 3 + 8


def bigram(pairs: dict[int, int], items: int) -> dict[str, torch.Tensor]:
    """A model whose ranking depends on the last item alone: it puts pairs[item] first."""
    weights = {name: tensor * 0 for name, tensor in Network(items, 16, torch.Generator()).weights().items()}
    weights["item_embedding"] = torch.eye(items, 16)
    gate = torch.zeros(48, 16)
    for item, following in pairs.items():
        gate[32 + following, item] = 5.0
    weights["gru.weight_ih_l0"] = gate
    return weights


def test_what_a_model_does_not_know_is_a_miss_of_its_own() -> None:
    """Items by index: z b a | c d. The champion knows z, b; the challenger z, b, a."""
    newest = cut_newest(LOG, 5, ["z", "b"], "user")
    champion = bigram({1: 1}, 2)
    challenger = bigram({1: 2, 2: 1}, 3)
    found = ask(newest, challenger, champion)
    # asked: u's c, v's a, w's b, x's a
    assert found.champion is not None
    by_sequence = {int(s): n for n, s in enumerate(found.sequence)}
    order = [by_sequence[s] for s in range(4)]
    assert found.challenger[order].tolist() == [0, 1, 1, 0]
    assert found.champion[order].tolist() == [0, 0, 0, 0]  # a is unknown to it, so before w's b it knows nothing
    assert found.popularity[order].tolist() == [0, 1, 2, 1]  # a three times, b twice
    assert found.whole


def test_asked_in_slices_the_answers_are_the_same() -> None:
    rng = np.random.default_rng(0)
    rows = [(f"u{rng.integers(900)}", f"i{rng.integers(30)}") for _ in range(9000)]
    newest = cut_newest(log_of(*rows), 5000, [], "user")
    weights = Network(30, 8, torch.Generator().manual_seed(1)).weights()
    found = ask(newest, weights, weights)
    assert len(found.sequence) == newest.asked.sum()
    assert found.champion is not None
    assert (found.champion == found.challenger).all()
    assert (found.challenger > 0).all()
    short = ask(newest, weights, None, spent=lambda: 1.0)
    assert not short.whole
    assert 1500 < len(short.sequence) < 3000
    mean = [np.mean(answer.challenger) for answer in (found, short)]
    assert mean[0] == pytest.approx(mean[1], rel=0.1)
    grown = grow(weights, 0, 1)
    assert (ask(newest, grown, None, seed=2).challenger.sum()) == found.challenger.sum()
