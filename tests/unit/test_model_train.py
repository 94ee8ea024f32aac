from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from shared.core.errors import ModelDamaged, SettingsInvalid
from shared.model.config import ModelConfig, TrainConfig
from shared.model.evaluate import evaluate, popularity
from shared.model.fit import fit
from shared.model.network import NO_REPEATS, Network, Weights, check_weights, grow
from shared.model.repeats import never_repeats
from shared.model.train import Progress, Trainer, TrainerState
from shared.model.update import drop
from tests.unit.test_model_dataset import sessions_of

SMALL = TrainConfig(
    ModelConfig(8), input_dropout=0.0, hidden_dropout=0.0, epochs=3, batch_events=16, truncate=4, negatives=5
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """A second thread gains nothing at these sizes, and on a busy machine it costs minutes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def walks(count: int, items: int = 40, seed: int = 0) -> list[list[int]]:
    """Sessions in which item i is followed by i + 1, i + 2 or i + 3."""
    rng = np.random.default_rng(seed)
    sessions = []
    for _ in range(count):
        steps = rng.integers(1, 4, rng.integers(1, 12))
        sessions.append([int(i) for i in (rng.integers(items) + np.concatenate([[0], np.cumsum(steps)])) % items])
    return sessions


def same(left: Weights, right: Weights) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


CONFIGS = [SMALL, replace(SMALL, negatives=0), replace(SMALL, input_dropout=0.3, hidden_dropout=0.3)]


@pytest.mark.parametrize("config", CONFIGS, ids=["sampled", "full", "dropout"])
def test_the_seed_decides_the_result(config: TrainConfig) -> None:
    sessions = sessions_of(*walks(30))
    first = fit(config, sessions, 40).weights
    torch.manual_seed(99)  # the global generator has no say
    assert same(first, fit(config, sessions, 40).weights)
    assert not same(first, fit(replace(config, seed=2), sessions, 40).weights)


@pytest.mark.parametrize("config", CONFIGS, ids=["sampled", "full", "dropout"])
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_resumed_equals_uninterrupted(config: TrainConfig, stop: int) -> None:
    sessions = sessions_of(*walks(30))
    states: list[TrainerState] = []
    whole = fit(config, sessions, 40, on_epoch=states.append)
    resumed = fit(config, sessions, 40, resume=states[stop - 1])
    assert resumed.epochs == whole.epochs == 3
    assert same(whole.weights, resumed.weights)


def test_resumed_early_stopping_keeps_the_best_epoch() -> None:
    config = replace(SMALL, epochs=30, patience=2, learning_rate=0.3)
    sessions, held_out = sessions_of(*walks(30)), sessions_of(*walks(10, seed=1))
    states: list[TrainerState] = []
    whole = fit(config, sessions, 40, validation=held_out, on_epoch=states.append)
    assert whole.epochs < 30
    assert evaluate(whole.weights, held_out).mrr20 == max(whole.validation)
    resumed = fit(config, sessions, 40, validation=held_out, resume=states[-2])
    assert resumed.validation == whole.validation
    assert same(whole.weights, resumed.weights)


def test_carried_state_equals_the_unrolled_session() -> None:
    """Windows of 3 steps see the same hidden states as one pass over whole sessions: the loss before any learning
    is that of full-length windows."""
    sessions = sessions_of(*walks(20, seed=2))
    frozen = replace(SMALL, negatives=0, epochs=1, learning_rate=1e-9, batch_events=10_000)
    short = Trainer(replace(frozen, truncate=3), sessions, 40).run()
    whole = Trainer(replace(frozen, truncate=1000), sessions, 40).run()
    assert short.loss == pytest.approx(whole.loss, abs=1e-5)


@pytest.mark.parametrize("scale", [0.0, 14.0])
def test_the_gradient_is_that_of_the_whole_session(scale: float) -> None:
    """Within a window it flows back through every step: equal to plain autograd over each session alone. By cosines,
    rows divided by their length have the gradient of rows that are kept at length one."""
    sessions = walks(6, seed=3)
    data = sessions_of(*sessions)
    config = replace(SMALL, negatives=0, epochs=1, batch_events=10_000, truncate=1000, clip_norm=1e9, matmul="fp32")
    trainer = Trainer(replace(config, scale=scale), data, 40)
    before = Network.from_weights(trainer.network.weights())
    table, bias = before.embedding.requires_grad_(), before.bias.requires_grad_()
    rows = functional.normalize(table, dim=1) if scale else table
    losses = []
    for session in (s for s in sessions if len(s) > 1):
        items = torch.tensor(session)
        states, _ = before.gru(rows[items[:-1]])
        scores = scale * functional.normalize(states, dim=1) @ rows.T if scale else states @ rows.T + bias
        losses.append(functional.cross_entropy(scores, items[1:], reduction="sum"))
    (torch.stack(losses).sum() / data.pairs).backward()
    seen: dict[str, torch.Tensor] = {}
    trainer._embedding.step = lambda rows, gradient, rate: seen.update(embedding=gradient)  # type: ignore[method-assign]
    trainer.run()
    torch.testing.assert_close(seen["embedding"], table.grad, rtol=1e-4, atol=1e-5)
    for ours, plain in zip(trainer.network.gru.parameters(), before.gru.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-4, atol=1e-5)


def test_by_cosines_embeddings_have_one_length_and_no_bias() -> None:
    sessions = sessions_of(*walks(30))
    plain = fit(replace(SMALL, scale=0.0), sessions, 40).weights
    assert plain["item_bias"].any()
    for start in (None, plain):  # also where training goes on from a model of the other kind
        weights = fit(SMALL, sessions, 40, start=start).weights
        lengths = weights["item_embedding"].norm(dim=1)
        assert lengths.max() - lengths.min() < 1e-4
        assert not weights["item_bias"].any()
        states, _ = Network.from_weights(weights).gru(weights["item_embedding"][torch.arange(40)[None]])
        assert 0.5 < lengths.mean() * states.norm(dim=2).mean() / SMALL.scale < 2  # products like training's scores


def test_training_goes_on_from_what_was_published() -> None:
    """Bringing embeddings to another length and back changes no ranking and no state."""
    sessions = sessions_of(*walks(30))
    weights = fit(SMALL, sessions, 40).weights
    network = Trainer(replace(SMALL, scale=14.0), sessions, 40, weights).network
    items = torch.arange(40)[None]
    states, _ = network.gru(network.embedding[items])
    published, _ = Network.from_weights(weights).gru(weights["item_embedding"][items])
    torch.testing.assert_close(states, published)
    assert network.embedding.norm(dim=1).sub(1).abs().max() < 1e-5


def test_whether_the_current_item_is_ever_chosen_next_is_read_from_the_log() -> None:
    never = [[2 * int(p), 2 * int(p) + 1] * 2 for p in np.random.default_rng(0).integers(0, 100, 400)]
    assert never_repeats(sessions_of(*never), 0.01)
    assert not never_repeats(sessions_of(*never), 0.0)
    assert not never_repeats(sessions_of(*never[:50]), 0.01)  # 150 pairs: too few to know
    assert never_repeats(sessions_of(*[[0], [0, 1]] * 400), 0.01)  # from one session to the next is no repeat
    some = sessions_of(*never, *[[5, 5]] * 20)
    assert not never_repeats(some, 0.01)
    config = replace(SMALL, epochs=1)
    quiet, loud = fit(config, sessions_of(*never), 200).weights, fit(config, some, 200).weights
    assert NO_REPEATS in quiet
    assert NO_REPEATS not in loud
    assert NO_REPEATS in grow(quiet, 3, seed=1)
    assert NO_REPEATS not in fit(config, some, 200, start=quiet).weights


@pytest.mark.parametrize("negatives", [0, 20])
def test_without_repeats_the_current_item_is_no_negative(negatives: int) -> None:
    """Its row may then stay close to the states that it leads to."""
    sessions = sessions_of(*[[2 * int(p), 2 * int(p) + 1] * 2 for p in np.random.default_rng(0).integers(0, 100, 400)])
    own = {}
    for below in (0.0, 0.01):
        config = replace(TrainConfig(ModelConfig(16)), epochs=8, batch_events=64, negatives=negatives)
        weights = fit(replace(config, repeats_below=below), sessions, 200).weights
        states, _ = Network.from_weights(weights).gru(weights["item_embedding"][None])  # after each item alone
        own[below] = functional.cosine_similarity(states[0], weights["item_embedding"]).mean()
        assert evaluate(weights, sessions).recall20 > 0.7
    assert own[0.01] > own[0.0]


def test_by_cosines_an_item_is_no_better_placed_for_being_frequent() -> None:
    """After item 0, item 1 comes as often as item 2, but item 1 is also in many sessions of its own."""
    sessions = sessions_of(*[[0, 1], [0, 2]] * 40, *[[3, 1]] * 400)
    config = replace(TrainConfig(ModelConfig(16)), epochs=40, batch_events=64, negatives=0)
    weights = fit(config, sessions, 4).weights
    states, _ = Network.from_weights(weights).gru(weights["item_embedding"][:1])
    scores = (states[-1] @ weights["item_embedding"].T).tolist()
    assert min(scores[1], scores[2]) > max(scores[0], scores[3])


def test_it_learns_what_comes_next() -> None:
    config = replace(TrainConfig(ModelConfig(16)), epochs=15, batch_events=64)
    train, test = sessions_of(*walks(300, 100)), sessions_of(*walks(100, 100, seed=1))
    found = evaluate(fit(config, train, 100).weights, test)
    assert found.recall20 > 0.9
    assert found.recall20 > 2 * popularity(train, test, 100).recall20


def test_progress_counts_every_pair() -> None:
    told: list[Progress] = []
    sessions = sessions_of(*walks(30))
    fit(SMALL, sessions, 40, on_progress=told.append)
    assert told[-1].events == told[-1].total_events == 3 * sessions.pairs
    assert [p.events for p in told] == sorted(p.events for p in told)


def test_the_last_epochs_learn_the_newest_sessions_only() -> None:
    assert TrainConfig(epochs=12, newest=0.25).epoch_shares() == [1.0] * 10 + [0.25] * 2
    assert TrainConfig(epochs=2).epoch_shares() == [1.0, 1.0]
    sessions = sessions_of(*[[0, 1]] * 60, *[[2, 3]] * 20)
    told: list[Progress] = []
    fit(replace(SMALL, epochs=6, newest=0.25), sessions, 40, on_progress=told.append)
    seen = {p.epoch: p.epoch_events for p in told}  # the last of each epoch
    assert [seen[epoch] for epoch in range(1, 7)] == [80, 80, 80, 80, 80, 20]
    assert told[-1].events == told[-1].total_events == 420


@pytest.mark.parametrize("sessions", [[[0, 0, 0]], [[0, 1], [0]]])
def test_tiny_catalogues(sessions: list[list[int]]) -> None:
    weights = fit(SMALL, sessions_of(*sessions), 2).weights
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_growing_keeps_old_items_where_and_what_they_were() -> None:
    parent = fit(SMALL, sessions_of(*walks(30)), 40).weights
    grown = grow(parent, 3, seed=1)
    assert check_weights(grown) == (43, 8)
    assert torch.equal(grown["item_embedding"][:40], parent["item_embedding"])
    assert torch.equal(grown["item_bias"][:40], parent["item_bias"])
    assert grown["item_bias"][40:].max() <= parent["item_bias"].median()
    assert torch.equal(grown["gru.weight_hh_l0"], parent["gru.weight_hh_l0"])
    assert same(grown, grow(parent, 3, seed=1))
    assert same(grow(parent, 0, seed=1), parent)
    assert not grown["item_embedding"][40].equal(grown["item_embedding"][41])


def test_growing_from_one_item() -> None:
    grown = grow(Network(1, 4, torch.Generator()).weights(), 2, seed=1)
    assert grown["item_embedding"].isfinite().all()


def test_a_grown_model_learns_the_new_item() -> None:
    parent = fit(replace(SMALL, epochs=10, batch_events=64), sessions_of(*walks(200)), 40).weights
    newest = sessions_of(*([[7, 40, 8]] * 60))
    tuned = fit(replace(SMALL, epochs=10, learning_rate=0.05), newest, 41, start=grow(parent, 1, 1)).weights
    assert evaluate(tuned, sessions_of([7, 40])).mrr20 == 1.0


def test_weights_that_do_not_fit_are_refused() -> None:
    weights = Network(5, 4, torch.Generator()).weights()
    with pytest.raises(ModelDamaged, match=r"gru.bias_hh_l0 has shape None, expected \(12,\)"):
        check_weights({name: tensor for name, tensor in weights.items() if name != "gru.bias_hh_l0"})
    with pytest.raises(ModelDamaged, match="item_bias"):
        check_weights(weights | {"item_bias": torch.zeros(4)})
    with pytest.raises(ModelDamaged, match="item_embedding"):
        check_weights({"item_embedding": torch.zeros(4)})


def test_config_round_trips_and_names_a_bad_setting() -> None:
    config = TrainConfig(ModelConfig(64), seed=7, epochs=3)
    assert TrainConfig.from_json(config.to_json()) == config
    assert TrainConfig.from_json({"unknown": 1, **config.to_json()}) == config
    with pytest.raises(SettingsInvalid, match="truncate"):
        TrainConfig(truncate=0)
    with pytest.raises(SettingsInvalid, match="width"):
        TrainConfig(ModelConfig(0))


def test_small_logs_get_more_epochs() -> None:
    config = TrainConfig()
    assert config.settled(1_000_000).epochs == 12
    assert config.settled(18_000).epochs == 20  # 700 updates of 512 pairs
    assert config.settled(10).epochs == 30
    assert TrainConfig(epochs=3).settled(10).epochs == 3


def test_dropout_keeps_the_mean() -> None:
    values = torch.ones(400, 256)
    thinned = drop(values, 0.25, np.random.default_rng(0))
    assert thinned.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert thinned.mean().item() == pytest.approx(1.0, abs=0.01)
    assert drop(values, 0.0, np.random.default_rng(0)) is values


def test_without_time_the_loss_is_the_same_and_the_gradient_another() -> None:
    config = TrainConfig(ModelConfig(8), epochs=3, input_dropout=0.0, negatives=0)
    with_time, without = (Trainer(replace(config, bptt=bptt), sessions_of([0, 1, 2, 3]), 4) for bptt in (1, 0))
    first = [trainer.run().loss for trainer in (with_time, without)]  # before the only update
    assert first[0] == pytest.approx(first[1], rel=1e-6)
    with_time.run(), without.run()
    third = [trainer.run().loss for trainer in (with_time, without)]
    assert abs(third[0] - third[1]) > 1e-5


def test_without_time_states_are_carried_all_the_same() -> None:
    sessions = sessions_of(list(range(6)) * 3)
    whole = Trainer(TrainConfig(ModelConfig(8), epochs=1, bptt=0, learning_rate=1e-9), sessions, 6)
    parts = Trainer(TrainConfig(ModelConfig(8), epochs=1, bptt=0, learning_rate=1e-9, truncate=4), sessions, 6)
    long = Trainer(TrainConfig(ModelConfig(8), epochs=1, bptt=1, learning_rate=1e-9), sessions, 6)
    losses = [trainer.run().loss for trainer in (whole, parts, long)]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)
