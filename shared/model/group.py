"""Several processes that train one model: what they must do together. Over a network: shared/adapters/torchrun.py."""

from __future__ import annotations

from typing import Protocol

import torch


class Group(Protocol):
    """Each process calls each method as often as all others, in the same order. Raises Unavailable where one is gone.

    rank: of this process, from 0; size: how many there are.
    """

    rank: int
    size: int

    def add(self, tensor: torch.Tensor) -> None:
        """Replace the tensor, of the same shape everywhere, by the sum over all processes; the same bits in each."""

    def share(self, tensors: dict[str, torch.Tensor] | None) -> dict[str, torch.Tensor]:
        """What the first process gives; what the others give is not looked at."""


class Alone:
    """A group of one."""

    rank = 0
    size = 1

    def add(self, tensor: torch.Tensor) -> None:
        """See Group."""

    def share(self, tensors: dict[str, torch.Tensor] | None) -> dict[str, torch.Tensor]:
        """See Group."""
        return tensors or {}


ALONE = Alone()
