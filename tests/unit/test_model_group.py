"""Several processes that train one model, as threads: the result is that of one."""

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import numpy as np
import pytest
import torch

from shared.model.config import ModelConfig, TrainConfig
from shared.model.dataset import Sessions
from shared.model.dismissals import Dismissals
from shared.model.evaluate import event_ranks
from shared.model.fit import Fitted, fit
from shared.model.group import ALONE, Group
from tests.unit.test_model_dataset import sessions_of
from tests.unit.test_model_train import same, walks

T = TypeVar("T")


class Board:
    """What the members of a group write on and read from."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.tensors: list[torch.Tensor | None] = [None] * size
        self.all_here = threading.Barrier(size, timeout=60)


class Member:
    """The twin of a TorchGroup, among threads."""

    def __init__(self, board: Board, rank: int) -> None:
        self.rank, self.size, self._board = rank, board.size, board

    def add(self, tensor: torch.Tensor) -> None:
        self._board.tensors[self.rank] = tensor.clone()
        self._board.all_here.wait()
        held = [t for t in self._board.tensors if t is not None]
        tensor.copy_(sum(held[1:], held[0]))
        self._board.all_here.wait()

    def share(self, tensors: dict[str, torch.Tensor] | None) -> dict[str, torch.Tensor]:
        raise NotImplementedError


def together(size: int, work: Callable[[Group], T]) -> list[T]:
    board, found = Board(size), dict[int, T]()

    def member(rank: int) -> None:
        found[rank] = work(Member(board, rank))

    threads = [threading.Thread(target=member, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[rank] for rank in range(size)]


DATA = sessions_of(*walks(60), *[[n % 40, (n + 1) % 40] * 9 for n in range(3)])
TAUGHT = replace(DATA, dismissals=Dismissals(np.arange(0, 300, 3), (np.arange(100) % 40).astype(np.int32)))
SMALL = TrainConfig(ModelConfig(8), epochs=2, batch_events=24, truncate=4, negatives=5, learning_rate=1e-3)
CONFIGS = {
    "sampled": SMALL,
    "full": replace(SMALL, negatives=0),
    "dropout": replace(SMALL, input_dropout=0.3, hidden_dropout=0.3),
}


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("size", [2, 5])  # of five, some have no lane in the small batches
@pytest.mark.parametrize("data", [DATA, TAUGHT], ids=["plain", "dismissals"])
def test_several_train_the_model_of_one(config: TrainConfig, size: int, data: Sessions) -> None:
    alone = fit(config, data, 40)
    found = together(size, lambda group: fit(config, data, 40, group=group))
    assert all(same(found[0].weights, other.weights) for other in found[1:])  # the same bits in each
    assert found[0].loss == pytest.approx(alone.loss, rel=1e-4)
    start = fit(replace(config, learning_rate=1e-9), data, 40).weights
    for name, tensor in alone.weights.items():
        moved = (tensor - start[name]).norm()
        assert (tensor - found[0].weights[name]).norm() <= 0.02 * moved, name


def test_they_stop_at_the_same_update_by_the_first_ones_clock() -> None:
    def work(group: Group) -> Fitted:
        looks = iter(range(1000))
        clock = (lambda: next(looks) / 7) if not group.rank else (lambda: 5.0)
        return fit(replace(SMALL, epochs=50), DATA, 40, group=group, spent=clock)

    found = together(2, work)
    assert [f.out_of_time for f in found] == [True, True]
    assert same(found[0].weights, found[1].weights)


def test_early_stopping_is_agreed_on() -> None:
    config = replace(SMALL, epochs=40, patience=1, learning_rate=0.1)
    held_out = sessions_of(*walks(10, seed=1))
    found = together(2, lambda group: fit(config, DATA, 40, validation=held_out, group=group))
    assert found[0].epochs == found[1].epochs < 40
    assert found[0].validation == found[1].validation


def test_ranks_are_shared_out_and_all_get_all() -> None:
    weights = fit(SMALL, DATA, 40).weights
    asked = np.arange(len(DATA.items)) % 3 > 0
    alone = event_ranks(weights, DATA, asked, group=ALONE)
    for ranks in together(3, lambda group: event_ranks(weights, DATA, asked, group=group)):
        assert torch.equal(ranks, alone)
