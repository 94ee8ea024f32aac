"""Softmax cross-entropy over candidates, the whole catalogue or a corrected sample of it."""

from __future__ import annotations

import torch
from torch.nn import functional

from shared.model.sample import Candidates


def softmax_loss(hidden: torch.Tensor, embedding: torch.Tensor, bias: torch.Tensor, among: Candidates) -> torch.Tensor:
    """Mean over the pairs of -log p(target), in nats.

    hidden (N, D); embedding (C, D) and bias (C,) of ``among.items``. A pair's own target counts with its plain score,
    as it is there with certainty; every other candidate with the score plus its correction. So a draw that hits the
    target is never its own rival, and with all items as candidates this is the full softmax.
    """
    targets = torch.from_numpy(among.targets)
    correction = torch.from_numpy(among.correction)
    scores = torch.addmm(bias, hidden, embedding.T)  # (N, C)
    own = scores.gather(1, targets[:, None])  # (N, 1)
    rivals = scores + correction
    rivals = rivals.scatter(1, targets[:, None], own)
    return functional.cross_entropy(rivals, targets)
