"""Adam on the rows of a table that an update touched, so that its cost does not grow with the catalogue.

Kingma and Ba 2015, lazily: the moments of a row move only when the row has a gradient, and the bias correction counts
the row's own updates.
"""

from __future__ import annotations

import torch

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


class RowAdam:
    """Moments for one table (I, ...) of float32."""

    def __init__(self, table: torch.Tensor) -> None:
        self.table = table
        self.mean = torch.zeros_like(table)
        self.square = torch.zeros_like(table)
        self.updates = torch.zeros(len(table), dtype=torch.int32)

    def step(self, rows: torch.Tensor, gradient: torch.Tensor, rate: float) -> None:
        """rows (R,) distinct indexes; gradient (R, ...)."""
        updates = self.updates[rows] + 1
        self.updates[rows] = updates
        mean = self.mean[rows].lerp_(gradient, 1 - BETA1)
        square = self.square[rows].mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
        self.mean[rows] = mean
        self.square[rows] = square
        shape = (-1,) + (1,) * (gradient.dim() - 1)
        correction1 = (1 - BETA1 ** updates.double()).float().view(shape)
        correction2 = (1 - BETA2 ** updates.double()).float().view(shape)
        change = (mean / correction1) / ((square / correction2).sqrt_() + EPSILON)
        self.table[rows] = self.table[rows] - rate * change

    def state(self) -> dict[str, torch.Tensor]:
        """The moments themselves, not copies."""
        return {"mean": self.mean, "square": self.square, "updates": self.updates}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Continue from what ``state`` gave."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
