"""Softmax cross-entropy over candidates, the whole catalogue or a corrected sample of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.nn import functional

from shared.model.sample import Candidates


class Dismissed(NamedTuple):
    """pair (K,): the (input, target) pair at whose state an item was turned down; item (K,): its row. int64.
    weight (K,): float32."""

    pair: torch.Tensor
    item: torch.Tensor
    weight: torch.Tensor


def softmax_loss(
    hidden: torch.Tensor, embedding: torch.Tensor, bias: torch.Tensor, among: Candidates, *, bf16: bool = False
) -> torch.Tensor:
    """Mean over the pairs of -log p(target), in nats.

    hidden (N, D); embedding (C, D) and bias (C,) of ``among.items``. A pair's own target counts with its plain score,
    as it is there with certainty; every other candidate with the score plus its correction. So a draw that hits the
    target is never its own rival, and with all items as candidates this is the full softmax.
    bf16: the three large multiplications in low precision, their sums in float32.
    """
    targets, correction = torch.from_numpy(among.targets), torch.from_numpy(among.correction)
    barred = None if among.barred is None else torch.from_numpy(among.barred)
    loss: torch.Tensor = _SoftmaxLoss.apply(hidden, embedding, bias, targets, correction, barred, bf16)  # type: ignore[no-untyped-call]
    return loss


class _SoftmaxLoss(torch.autograd.Function):
    """The gradient is computed along with the loss, in the one (N, C) array: a third less time than autograd takes."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        embedding: torch.Tensor,
        bias: torch.Tensor,
        targets: torch.Tensor,
        correction: torch.Tensor,
        barred: torch.Tensor | None,
        bf16: bool,
    ) -> torch.Tensor:
        own_place = targets[:, None]  # (N, 1)
        if bf16:
            low_hidden, low_embedding = _low(hidden), _low(embedding)
            scores = (low_hidden @ low_embedding.T)[: len(hidden), : len(embedding)] + bias  # (N, C) float32
        else:
            scores = torch.addmm(bias, hidden, embedding.T)  # (N, C)
        own = scores.gather(1, own_place)
        scores.add_(correction)
        if barred is not None:
            scores.scatter_(1, barred[:, None], -torch.inf)
        scores.scatter_(1, own_place, own)
        log_p = functional.log_softmax(scores, 1)
        loss = -log_p.gather(1, own_place).mean()
        slope = log_p.exp_()  # becomes d loss / d scores: (p - [target]) / N
        slope.scatter_add_(1, own_place, slope.new_full((1, 1), -1.0).expand_as(own)).mul_(1 / len(targets))
        if bf16:
            low = slope.new_zeros(len(low_hidden), len(low_embedding), dtype=torch.bfloat16)
            low[: len(hidden), : len(embedding)] = slope
            gradients = (
                (low @ low_embedding)[: len(hidden)].float(),
                (low.T @ low_hidden)[: len(embedding)].float(),
            )
        else:
            gradients = slope @ embedding, slope.T @ hidden
        ctx.save_for_backward(*gradients, slope.sum(0))
        return loss

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> Any:
        scale = outputs[0]
        return *(gradient * scale for gradient in ctx.saved_tensors), None, None, None, None


def dismissal_loss(
    hidden: torch.Tensor, embedding: torch.Tensor, bias: torch.Tensor, pairs: Dismissed, targets: torch.Tensor
) -> torch.Tensor:
    """Weighted sum over the dismissals of -log p(the item chosen next is preferred to the one dismissed), in nats.

    hidden (N, D) and targets (N,) of all (input, target) pairs; embedding (R, D) and bias (B,) in the same numbering.
    The pairwise loss of BPR (Rendle et al. 2009): unlike one on p(dismissed) alone, its slope does not vanish among
    thousands of items, of which each is improbable and yet may stand in the top 20.
    """
    states, chosen = hidden[pairs.pair], targets[pairs.pair]
    difference = embedding[pairs.item] - embedding[chosen]  # (K, D)
    losses = functional.softplus((states * difference).sum(1) + bias[pairs.item] - bias[chosen])
    return losses @ pairs.weight


def _low(rows: torch.Tensor) -> torch.Tensor:
    """bfloat16, with rows of zeros up to a multiple of 256: every new shape costs oneDNN milliseconds to prepare."""
    return functional.pad(rows.bfloat16(), (0, 0, 0, -len(rows) % 256))


def bf16_is_faster() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware tiles (AMX): half the time of a loss; elsewhere it is slower."""
    return bool(torch.cpu._is_amx_tile_supported())
