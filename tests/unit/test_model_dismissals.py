from dataclasses import replace

import numpy as np
import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from shared.model.config import ModelConfig, TrainConfig
from shared.model.dataset import Sessions, build_sessions, hold_out, without_new_items
from shared.model.dismissals import Dismissals
from shared.model.evaluate import event_ranks
from shared.model.fit import fit
from shared.model.network import Network, Weights
from tests.unit.test_model_dataset import sessions_of
from tests.unit.test_model_train import same

Row = tuple[str, str, str]


def log_of(*rows: Row) -> pl.DataFrame:
    named = [(None, user, item, at, kind) for at, (user, item, kind) in enumerate(rows)]
    schema = {
        "session_id": pl.String,
        "user_id": pl.String,
        "item_id": pl.String,
        "ts": pl.Int64,
        "event_type": pl.String,
    }
    return pl.DataFrame(named, schema=schema, orient="row")


def turned_down(sessions: Sessions) -> list[tuple[int, int, int]]:
    """(session, event within it, item) of each dismissal."""
    session = np.searchsorted(sessions.starts, sessions.dismissals.after, side="right") - 1
    step = sessions.dismissals.after - sessions.starts[session]
    return list(zip(session.tolist(), step.tolist(), sessions.dismissals.items.tolist(), strict=True))


LOG = log_of(
    ("u", "a", "view"),
    ("v", "c", "dismiss"),  # before v's first event: no state of hers to learn from
    ("u", "c", "dismiss"),
    ("v", "b", "view"),
    ("u", "b", "view"),
    ("v", "a", "dismiss"),
    ("v", "x", "dismiss"),  # not in the catalogue
    ("v", "c", "dismiss"),
    ("w", "a", "dismiss"),  # a user without events
    ("v", "a", "view"),
)


def test_dismissals_are_no_events_and_know_the_event_before_them() -> None:
    sessions = build_sessions(LOG, ["a", "b", "c"], dismissing=("dismiss",))
    assert [s.tolist() for s in np.split(sessions.items, sessions.starts[1:-1])] == [[0, 1], [1, 0]]
    assert turned_down(sessions) == [(0, 0, 2), (1, 0, 0), (1, 0, 2)]
    assert build_sessions(LOG[1:], ["a", "b", "c"], "user", ("dismiss",)).items.tolist() == [1, 0, 1]  # v before u


def test_a_log_of_dismissals_alone_has_no_sessions() -> None:
    assert len(build_sessions(log_of(("u", "a", "dismiss")), ["a"], dismissing=("dismiss",))) == 0


def test_they_move_with_their_sessions() -> None:
    sessions = build_sessions(LOG, ["a", "b", "c"], dismissing=("dismiss",))
    assert turned_down(sessions.select(np.array([1]))) == [(0, 0, 0), (0, 0, 2)]
    assert turned_down(sessions.select(np.array([1, 0]))) == [(0, 0, 0), (0, 0, 2), (1, 0, 2)]
    assert turned_down(without_new_items(sessions, 2)) == [(1, 0, 0)]
    split = hold_out(sessions, ["a", "b", "c"], 0.5)
    names = [split.catalogue[item] for _, _, item in turned_down(split.newest)]
    assert names == ["a", "c"]


def test_a_dismissal_falls_back_to_the_last_event_that_is_left() -> None:
    sessions = replace_dismissals(sessions_of([0, 5, 5, 1], [5, 2, 3]), [2, 4], [1, 3])
    assert turned_down(without_new_items(sessions, 5)) == [(0, 0, 1)]


def replace_dismissals(sessions: Sessions, after: list[int], items: list[int]) -> Sessions:
    return replace(sessions, dismissals=Dismissals(np.array(after, np.int64), np.array(items, np.int32)))


@given(after=st.lists(st.integers(0, 9)), places=st.lists(st.integers(0, 9)))
def test_lookup_finds_each_dismissal_of_each_place(after: list[int], places: list[int]) -> None:
    found = Dismissals(np.array(sorted(after), np.int64), np.arange(len(after), dtype=np.int32))
    which, items = found.at(np.array(places, np.int64))
    expected = [(n, k) for n, place in enumerate(places) for k, at in enumerate(sorted(after)) if at == place]
    assert list(zip(which.tolist(), items.tolist(), strict=True)) == expected


SMALL = TrainConfig(ModelConfig(16), input_dropout=0.0, epochs=20, batch_events=32, learning_rate=0.02)
DATA = sessions_of(*([0, 1 + n % 3, 4] for n in range(240)))  # after 0 comes 1, 2 or 3, each as often


def scores_after_0(weights: Weights) -> list[float]:
    network = Network.from_weights(weights)
    states, _ = network.gru(network.embedding[:1][None])
    return (states[0] @ network.embedding.T + network.bias)[0].tolist()  # type: ignore[no-any-return]


def turning_down_3(one_in: int) -> Sessions:
    """DATA, where one in so many of those who got 1 or 2 had turned 3 down."""
    after = DATA.starts[:-1][np.arange(240) % 3 != 2][::one_in]
    return replace(DATA, dismissals=Dismissals(after, np.full(len(after), 3, np.int32)))


def below_the_others(weights: Weights) -> float:
    """By how much 3 is below 1 and 2 after 0."""
    scores = scores_after_0(weights)
    return (scores[1] + scores[2]) / 2 - scores[3]


def test_training_pushes_down_what_was_dismissed_there_and_only_there() -> None:
    data = turning_down_3(4)  # 40 times, and chosen 80 times
    for config in (replace(SMALL, negatives=0), replace(SMALL, negatives=2)):
        plain, taught = (fit(config, sessions, 6).weights for sessions in (DATA, data))
        assert abs(below_the_others(plain)) < 0.75
        assert below_the_others(taught) > below_the_others(plain) + 0.2
        scores = scores_after_0(taught)
        assert scores[3] > scores[5]  # it is chosen there, too: what never is stays below
        untaught = scores_after_0(fit(replace(config, dismiss_weight=0.0), data, 6).weights)
        assert untaught == scores_after_0(plain)


def test_what_everybody_is_offered_and_most_turn_down_keeps_its_place() -> None:
    config, data = replace(SMALL, negatives=0), turning_down_3(1)  # 160 times
    plain = below_the_others(fit(config, DATA, 6).weights)
    held = below_the_others(fit(config, data, 6).weights)
    free = below_the_others(fit(replace(config, dismiss_share=1000), data, 6).weights)
    assert plain < held < plain + (free - plain) / 2


def test_a_dismissed_item_that_was_chosen_all_the_same_counts_as_chosen() -> None:
    chosen = DATA.items[DATA.starts[:-1] + 1]
    data = replace(DATA, dismissals=Dismissals(DATA.starts[:-1], chosen))
    assert same(fit(SMALL, data, 6).weights, fit(SMALL, DATA, 6).weights)


def test_items_outside_the_catalogue_and_states_without_a_next_event_teach_nothing() -> None:
    last = DATA.starts[1:] - 1
    data = replace(DATA, dismissals=Dismissals(last, np.full(len(last), 9, np.int32)))
    assert same(fit(SMALL, data, 6).weights, fit(SMALL, DATA, 6).weights)


def test_ranks_by_event() -> None:
    weights = fit(SMALL, DATA, 6).weights
    ranks = event_ranks(weights, sessions_of([0, 1, 4], [5], [0, 5, 4]))
    assert ranks[[0, 3, 4]].tolist() == [0, 0, 0]  # the first of each session has nothing before it
    assert ranks[2] == 1
    assert ranks[5] > 3
    asked = np.array([False, False, True, False, False, False, True])
    assert event_ranks(weights, sessions_of([0, 1, 4], [5], [0, 5, 4]), asked).tolist() == [0, 0, 1, 0, 0, 0, ranks[6]]
