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
        updates = self.updates.index_select(0, rows).add_(1)
        mean = self.mean.index_select(0, rows).lerp_(gradient, 1 - BETA1)
        square = self.square.index_select(0, rows).mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
        self.updates.index_copy_(0, rows, updates)
        self.mean.index_copy_(0, rows, mean)
        self.square.index_copy_(0, rows, square)
        shape = (-1,) + (1,) * (gradient.dim() - 1)
        count = updates.double()
        # rate * (mean / c1) / (sqrt(square / c2) + eps), with the row's constants gathered in one factor
        root = (1 - BETA2**count).sqrt_()
        factor = (-rate * root / (1 - BETA1**count)).float().view(shape)
        change = mean.div_(square.sqrt_().add_((EPSILON * root).float().view(shape))).mul_(factor)
        self.table.index_add_(0, rows, change)

    def state(self) -> dict[str, torch.Tensor]:
        """The moments themselves, not copies."""
        return {"mean": self.mean, "square": self.square, "updates": self.updates}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Continue from what ``state`` gave."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
