"""The test behind a rollback, on literal numbers and on seeded streams."""

from __future__ import annotations

import random

import pytest

from shared.core.rollback import LEAST_EVENTS, LOOKS, Level, judge_promotion, p_lower


@pytest.mark.parametrize(
    ("new", "old", "p"),
    [
        ((45, 100), (60, 100), 0.01684),  # z = -2.1246
        ((60, 100), (45, 100), 0.98316),
        ((50, 100), (50, 100), 0.5),
        ((0, 50), (0, 50), 1.0),
        ((50, 50), (50, 50), 1.0),
        ((0, 0), (50, 100), 1.0),
        ((5, 100), (0, 0), 1.0),
    ],
)
def test_p_of_two_proportions(new: tuple[int, int], old: tuple[int, int], p: float):
    assert p_lower(Level(*new), Level(*old)) == pytest.approx(p, abs=1e-4)


def bits(rate: float, events: int, seed: int) -> list[int]:
    rng = random.Random(f"{rate}/{seed}")
    return [int(rng.random() < rate) for _ in range(events)]


BEFORE = Level(500, 1000)


def test_too_little_is_known_before():
    assert judge_promotion([0] * 1000, Level(50, LEAST_EVENTS - 1), 1000, 0.01).verdict == "keep"


def test_it_waits_for_its_looks():
    assert judge_promotion([], BEFORE, 1000, 0.01).verdict == "wait"
    assert judge_promotion([0] * 249, BEFORE, 1000, 0.01).verdict == "wait"
    at_once = judge_promotion([0] * 250, BEFORE, 1000, 0.01)
    assert at_once.verdict == "roll back"
    assert (at_once.before, at_once.after) == (BEFORE, Level(0, 250))
    assert at_once.p < 1e-9


def test_what_comes_after_a_look_does_not_change_it():
    outcomes = bits(0.3, 1000, 1)
    verdict = judge_promotion(outcomes[:250], BEFORE, 1000, 0.01)
    assert verdict.verdict == "roll back"
    assert all(judge_promotion(outcomes[:n], BEFORE, 1000, 0.01) == verdict for n in range(250, 1000, 50))


@pytest.mark.parametrize(
    ("rate", "rolled_back"), [(0.5, (0, 4)), (0.55, (0, 0)), (0.42, (160, 200)), (0.3, (200, 200))]
)
def test_how_often_a_model_is_rolled_back(rate: float, rolled_back: tuple[int, int]):
    """Of 200 promotions, each against a fresh measurement of the old model."""
    count = 0
    for seed in range(200):
        before = bits(0.5, 1000, seed + 1000)
        judged = judge_promotion(bits(rate, 1000, seed), Level(sum(before), 1000), 1000, 0.01)
        assert judged.verdict != "wait"
        count += judged.verdict == "roll back"
    assert rolled_back[0] <= count <= rolled_back[1]


def test_the_last_look_is_at_all_events():
    assert LOOKS[-1] == 1.0
    assert judge_promotion([1, 0] * 499, BEFORE, 1000, 0.01).verdict == "wait"
    assert judge_promotion([1, 0] * 500, BEFORE, 1000, 0.01).verdict == "keep"
