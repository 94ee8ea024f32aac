import numpy as np
import pytest

from shared.model.config import ModelConfig, TrainConfig
from shared.model.dataset import Sessions
from shared.model.fit import fit
from shared.model.level import WEEK_MS, lasting_share, with_level

ITEMS = 12


def weekly(*favourites: int, a_week: int = 400) -> Sessions:
    """Two items a session; in each week one item in two second places is the week's favourite, else any."""
    rng = np.random.default_rng(5)
    items: list[int] = []
    ended: list[int] = []
    for week, favourite in enumerate(favourites):
        for n in range(a_week):
            second = favourite if rng.random() < 0.5 else rng.integers(1, ITEMS)
            items += [0, int(second)]
            ended.append(week * WEEK_MS + n * WEEK_MS // a_week)
    starts = np.arange(0, len(items) + 1, 2, dtype=np.int64)
    return Sessions(np.array(items, np.int32), starts, np.array(ended, np.int64))


def bias(sessions: Sessions, level: float = 1.0) -> list[float]:
    config = TrainConfig(ModelConfig(16), epochs=4, newest=1.0, batch_events=64)
    weights = fit(config, sessions, ITEMS).weights
    return with_level(weights, sessions, level)["item_bias"].tolist()  # type: ignore[no-any-return]


def test_the_favourite_of_the_last_weeks_is_raised() -> None:
    found = bias(weekly(1, 1, 1, 1, 2, 2))
    assert np.argmax(found) == 2
    assert found[2] > 0.2
    assert found[1] < -0.2
    assert bias(weekly(1, 1, 1, 1, 2, 2), 0.5) == pytest.approx([value / 2 for value in found])


def test_where_no_week_is_like_the_last_nothing_lasts() -> None:
    assert bias(weekly(1, 2, 3, 4, 5, 6)) == [0.0] * ITEMS


def test_popularity_that_stays_needs_no_bias() -> None:
    assert max(map(abs, bias(weekly(1, 1, 1, 1, 1, 1)))) < 0.1


def test_a_log_of_days_is_left_alone() -> None:
    sessions = weekly(1, 1, 2)
    weights = fit(TrainConfig(ModelConfig(16), epochs=1), sessions, ITEMS).weights
    assert with_level(weights, sessions, 1.0) is weights
    assert with_level(weights, weekly(1, 1, 1, 1, 2, 2), 0.0) is weights
    assert with_level(weights, sessions.select(np.zeros(0, np.int64)), 1.0) is weights


def test_a_share_that_explains_the_later_choices_is_found() -> None:
    rng = np.random.default_rng(2)
    expected, earlier = np.full(50, 1000.0), rng.normal(0, 0.5, 50)
    for share in (0.0, 0.4, 1.0):
        rate = np.exp(share * earlier)
        assert lasting_share(earlier, 50_000 * rate / rate.sum(), expected) == pytest.approx(share, abs=0.051)
    assert lasting_share(earlier, 1000 * np.exp(-earlier), expected) == 0.0


def test_nothing_but_the_bias_changes() -> None:
    sessions = weekly(1, 1, 1, 1, 2, 2)
    weights = fit(TrainConfig(ModelConfig(16), epochs=2, newest=1.0, batch_events=64), sessions, ITEMS).weights
    levelled = with_level(weights, sessions, 1.0)
    assert all(levelled[name] is weights[name] for name in weights if name != "item_bias")
