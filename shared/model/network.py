"""The network: one GRU layer over item embeddings, which also score the items (tied), plus a bias per item.

x_t = E[item_t]    h_t = GRU(x_t, h_{t-1}), h_0 = 0    score_t = E h_t + b

Trained by cosines (TrainConfig.scale), all rows of E have the same length and b is zero: then the order of the scores
is that of the cosines, whatever the length of h_t, and a ranking needs to know nothing of how the model was trained.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional

from shared.core.errors import ModelDamaged

Weights = dict[str, torch.Tensor]
"""item_embedding (I, D), item_bias (I,), the tensors of torch.nn.GRU under ``gru.``, perhaps NO_REPEATS; float32"""

NO_REPEATS = "no_repeats"
"""A tensor of this name among the weights: rankings leave the current item out."""
GRU_NAMES = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")


class Network:
    """The weights while they are trained: the item tables as plain tensors, updated by row, and a torch GRU."""

    def __init__(self, items: int, width: int, generator: torch.Generator) -> None:
        self.width = width
        self.repeats = True
        """False: the current item is never chosen next, so no ranking holds it."""
        self.embedding = new_rows(items, width, generator)  # (I, D)
        self.bias = torch.zeros(items)  # (I,)
        self.gru = nn.GRU(width, width)
        bound = width**-0.5
        with torch.no_grad():
            for parameter in self.gru.parameters():
                parameter.uniform_(-bound, bound, generator=generator)

    @classmethod
    def from_weights(cls, weights: Mapping[str, torch.Tensor]) -> Network:
        """Raises ModelDamaged where names or shapes do not fit."""
        items, width = check_weights(weights)
        network = cls(0, width, torch.Generator())
        network.embedding = torch.empty(items, width)
        network.bias = torch.empty(items)
        network.load(weights)
        network.repeats = offers_repeats(weights)
        return network

    def load(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Take over weights of the same shapes, in place."""
        with torch.no_grad():
            self.embedding.copy_(weights["item_embedding"])
            self.bias.copy_(weights["item_bias"])
            for name in GRU_NAMES:
                getattr(self.gru, name).copy_(weights[f"gru.{name}"])

    def to_unit(self, rows: torch.Tensor) -> None:
        """Bring these embeddings to length one. rows (R,): distinct indexes."""
        self.embedding.index_copy_(0, rows, functional.normalize(self.embedding.index_select(0, rows), dim=1))

    @property
    def _input_weights(self) -> torch.Tensor:
        weights: torch.Tensor = getattr(self.gru, GRU_NAMES[0])
        return weights

    def for_cosines(self) -> None:
        """Get ready to be trained by cosines: undoes ``for_products``; another kind of model is changed by it."""
        length = self.embedding.norm(dim=1).median() if len(self.embedding) else 1.0
        with torch.no_grad():
            self._input_weights.mul_(length)  # hidden states stay what they were
        self.embedding = functional.normalize(self.embedding, dim=1)
        self.bias.zero_()

    def for_products(self, length: float) -> None:
        """Give all embeddings this length, without a change to hidden states or to the order of scores."""
        self.embedding.mul_(length)
        with torch.no_grad():
            self._input_weights.div_(length)

    def weights(self) -> Weights:
        """A copy, as published."""
        gru = {f"gru.{name}": getattr(self.gru, name).detach().clone() for name in GRU_NAMES}
        mark = {} if self.repeats else {NO_REPEATS: torch.ones(1)}
        return {"item_embedding": self.embedding.clone(), "item_bias": self.bias.clone(), **gru, **mark}


def offers_repeats(weights: Mapping[str, torch.Tensor]) -> bool:
    """Whether rankings of this model hold the current item."""
    return NO_REPEATS not in weights


def new_rows(items: int, width: int, generator: torch.Generator) -> torch.Tensor:
    """(items, width) embeddings to start from: about unit length each, so that first scores are small."""
    return torch.randn(items, width, generator=generator).mul_(width**-0.5)


def check_weights(weights: Mapping[str, torch.Tensor]) -> tuple[int, int]:
    """(items, width). Raises ModelDamaged where a tensor is missing or its shape does not fit the others."""
    try:
        items, width = weights["item_embedding"].shape
    except (KeyError, ValueError) as error:
        raise ModelDamaged("the weights hold no item_embedding of two dimensions") from error
    shapes = [(3 * width, width), (3 * width, width), (3 * width,), (3 * width,)]
    expected = {"item_bias": (items,), **{f"gru.{n}": s for n, s in zip(GRU_NAMES, shapes, strict=True)}}
    for name, shape in expected.items():
        found = tuple(weights[name].shape) if name in weights else None
        if found != shape:
            raise ModelDamaged(f"{name} has shape {found}, expected {shape}")
    return int(items), int(width)


def grow(parent: Mapping[str, torch.Tensor], new_items: int, seed: int) -> Weights:
    """The parent's weights with ``new_items`` rows appended: old items keep their indexes and their numbers.

    A new item starts near the mean of the old ones, a tenth of their spread away from it, and with the bias that the
    tenth least likely of them have: it neither crowds out known items nor is out of reach.
    """
    items, width = check_weights(parent)
    weights = {name: tensor.detach().float().clone() for name, tensor in parent.items()}
    if not new_items:
        return weights
    embedding, bias = weights["item_embedding"], weights["item_bias"]
    generator = torch.Generator().manual_seed(seed)
    rows = new_rows(new_items, width, generator)
    if items > 1:
        rows = embedding.mean(0) + 0.1 * embedding.std(0) * width**0.5 * rows
    low = bias.kthvalue(max(1, items // 10)).values if items else torch.zeros(())
    weights["item_embedding"] = torch.cat([embedding, rows])
    weights["item_bias"] = torch.cat([bias, low.expand(new_items)])
    return weights
