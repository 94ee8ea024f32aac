"""One update of the network: the gradient of the loss on one window, of one process or of several, and the step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from shared.model.config import TrainConfig
from shared.model.dataset import Sessions, Window
from shared.model.dismissals import Ints
from shared.model.group import Group
from shared.model.loss import Dismissed, bf16_is_faster, dismissal_loss, softmax_loss
from shared.model.network import Network
from shared.model.optimizer import RowAdam
from shared.model.sample import Candidates, NegativeSampler, all_items


class Updates:
    """What updates need beside the network: optimizers, negatives, dismissals, and the other processes.

    rate: of learning, given the share of the time budget that is gone.
    """

    def __init__(
        self, config: TrainConfig, network: Network, sessions: Sessions, group: Group, rate: Callable[[float], float]
    ) -> None:
        items = len(network.embedding)
        self.config, self.network, self.group, self._rate = config, network, group, rate
        self.gru = list(network.gru.parameters())
        self.dense = torch.optim.Adam(self.gru, lr=config.learning_rate)
        self.embedding = RowAdam(network.embedding)
        self.bias = RowAdam(network.bias)
        targets = np.delete(sessions.items, sessions.starts[:-1])  # every event but the first of each session
        chosen = np.bincount(targets, minlength=items)
        self._sampler = NegativeSampler(chosen, config.popularity_power)
        self._full = config.negatives == 0 or items <= 2 * config.negatives
        self._bf16 = config.matmul == "bf16" or (config.matmul == "auto" and bf16_is_faster())
        self._place = np.full(items, -1, np.int64)  # scratch: item -> row among those of one update
        self._dismissals = sessions.dismissals.known(items)
        turned_down = np.bincount(self._dismissals.items, minlength=items)
        share = config.dismiss_share * np.maximum(chosen, 1) / np.maximum(turned_down, 1)
        self._dismiss_weight = (config.dismiss_weight * np.minimum(share, 1)).astype(np.float32)  # (items,)
        self.spent = 0.0
        """Share of the time budget that is gone, as the first process last told it."""

    def one(
        self,
        window: Window,
        carried: torch.Tensor | None,
        rng: np.random.Generator,
        dropout: np.random.Generator,
        spent: float,
    ) -> tuple[torch.Tensor, float, int]:
        """One step of the optimizer on one window. Returns (state to carry (1, B, D), of this process' lanes; loss,
        pairs). spent: of the time budget; the first process' counts."""
        config, network = self.config, self.network
        at = np.flatnonzero(window.valid)
        targets = window.targets.ravel()[at]
        if self._full:
            among = all_items(targets, len(network.embedding))
        else:
            among = self._sampler.candidates(targets, config.negatives, rng)
        pair, items = self._dismissed(window, at)
        rows, (rejected, inputs) = self._rows(among, items, window.inputs.ravel()[at])
        if not network.repeats:
            among = without_own(among, rows, inputs)
        scored = max(len(among.items), int(rejected.max(initial=-1)) + 1)  # rows that need a bias
        rows_t = torch.from_numpy(rows)
        embedding = network.embedding[rows_t].requires_grad_()  # (R, D)
        bias = network.bias[rows_t[:scored]].requires_grad_(not config.scale)  # (S,)

        dismissed = pair, rejected, self._dismiss_weight[items]
        padded = np.zeros(window.inputs.size, np.int64)
        padded[at] = inputs
        hidden, loss = self._loss(
            padded.reshape(window.inputs.shape), at, embedding, bias, among, dismissed, carried, dropout
        )
        self.dense.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        loss_of_all = self._apply(rows_t, embedding, bias, loss.item(), spent)
        # Sessions of unequal length: those that go on reach the window's end, so their last state is the one to carry.
        return hidden.detach(), loss_of_all, len(at)

    def _rows(self, among: Candidates, *others: Ints) -> tuple[Ints, list[Ints]]:
        """(table rows of this update: the candidates, then each of the others' items that came in none before; for
        each of the others (N,) the places of its items in the rows)."""
        place, rows = self._place, among.items
        place[rows] = np.arange(len(rows))
        for items in others:
            extra = np.unique(items[place[items] < 0])
            place[extra] = len(rows) + np.arange(len(extra))
            rows = np.concatenate([rows, extra])
        local = [place[items] for items in others]
        place[rows] = -1
        return rows, local

    def _dismissed(self, window: Window, at: Ints) -> tuple[Ints, Ints]:
        """at (N,): the pairs' places in the window -> (K,) positions in ``at``, (K,) items that were dismissed there,
        without those that were chosen next all the same."""
        if not len(self._dismissals) or not self.config.dismiss_weight:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        pair, items = self._dismissals.at(window.places.ravel()[at])
        kept = items != window.targets.ravel()[at[pair]]
        return pair[kept], items[kept]

    def _loss(
        self,
        inputs: Ints,
        at: Ints,
        embedding: torch.Tensor,
        bias: torch.Tensor,
        among: Candidates,
        dismissed: tuple[Ints, Ints, Ints],
        carried: torch.Tensor | None,
        dropout: np.random.Generator,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(state to carry (1, B, D), this process' part of the mean loss over all pairs).

        inputs (T, B): rows of embedding; at (N,): where in them there are pairs; dismissed: (K,) positions in ``at``,
        (K,) rows of embedding, (K,) float32 weights.
        """
        config, lanes, size = self.config, inputs.shape[1], self.group.size
        mine = np.flatnonzero(at % lanes % size == self.group.rank)  # (M,) positions in ``at``
        chosen = torch.from_numpy(inputs[:, self.group.rank :: size])
        values = functional.embedding(chosen, embedding)  # (T, B', D)
        whole = (*inputs.shape, self.network.width)
        values = drop(values, config.input_dropout, dropout, whole, np.s_[:, self.group.rank :: size])
        if not len(mine):  # more processes than lanes
            drop(values, config.hidden_dropout, dropout, (len(at), self.network.width), mine)
            nothing = [embedding, bias, *self.gru]
            return values.detach()[:1], torch.stack([p.sum() * 0 for p in nothing]).sum()
        outputs, hidden = self.network.gru(values, carried) if config.bptt else self._by_step(values, carried)
        flat = at[mine] // lanes * chosen.shape[1] + at[mine] % lanes // size
        states = outputs.view(-1, self.network.width).index_select(0, torch.from_numpy(flat))  # (M, D)
        states = drop(states, config.hidden_dropout, dropout, (len(at), self.network.width), mine)
        if config.scale:
            states = config.scale * functional.normalize(states, dim=1)
        barred = None if among.barred is None else among.barred[mine]
        among = replace(among, targets=among.targets[mine], barred=barred)
        candidates = len(among.items)
        loss = softmax_loss(states, embedding[:candidates], bias[:candidates], among, bf16=self._bf16)
        loss = loss * (len(mine) / len(at))
        pair, rows, weight = dismissed
        if len(pair):
            position = np.searchsorted(mine, pair)
            kept = mine[np.minimum(position, len(mine) - 1)] == pair
            pairs = Dismissed(*(torch.from_numpy(values) for values in (position[kept], rows[kept], weight[kept])))
            down = dismissal_loss(states, embedding, bias, pairs, torch.from_numpy(among.targets))
            loss = loss + down / len(at)
        return hidden, loss

    def _by_step(self, values: torch.Tensor, carried: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """values (T, B, D): the same outputs as of the GRU over all steps, and each has a gradient of one step only."""
        with torch.no_grad():
            before, _ = self.network.gru(values, carried)
        first = torch.zeros_like(before[:1]) if carried is None else carried
        states = torch.cat([first, before[:-1]]).reshape(1, -1, self.network.width)
        outputs, _ = self.network.gru(values.reshape(1, -1, self.network.width), states)
        outputs = outputs.view(values.shape)
        return outputs, outputs[-1:]

    def _apply(
        self, rows: torch.Tensor, embedding: torch.Tensor, bias: torch.Tensor, loss: float, spent: float
    ) -> float:
        """Add up all processes' gradients, clip them by their common norm, then step. Returns the loss of all."""
        assert embedding.grad is not None
        if self.config.scale:  # what would only change a row's length
            along = (embedding.grad * embedding.detach()).sum(1, keepdim=True)
            embedding.grad.sub_(along * embedding.detach())
        tables = [embedding.grad] if bias.grad is None else [embedding.grad, bias.grad]
        gradients = [*tables, *(p.grad for p in self.gru if p.grad is not None)]
        loss, self.spent = self._summed(gradients, loss, spent)
        norm = torch.stack([g.norm() for g in gradients]).norm().item()
        if norm > self.config.clip_norm:
            for gradient in gradients:
                gradient.mul_(self.config.clip_norm / norm)
        rate = self._rate(self.spent)
        for group in self.dense.param_groups:
            group["lr"] = rate
        self.dense.step()
        self.embedding.step(rows, embedding.grad, rate)
        if bias.grad is not None:
            self.bias.step(rows[: len(bias)], bias.grad, rate)
        if self.config.scale:
            self.network.to_unit(rows)
        return loss

    def _summed(self, gradients: list[torch.Tensor], loss: float, spent: float) -> tuple[float, float]:
        """Add the gradients over all processes, in place, in one message. Returns loss and time spent of all."""
        if self.group.size == 1:
            return loss, spent
        flat = torch.cat([*(g.flatten() for g in gradients), torch.tensor([loss, spent])])
        self.group.add(flat)
        for gradient, summed in zip(gradients, torch.split(flat[:-2], [g.numel() for g in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))
        return float(flat[-2]), float(flat[-1])


def without_own(among: Candidates, rows: Ints, inputs: Ints) -> Candidates:
    """The candidates, but no pair has its own input as a negative. rows (R,): the candidates' items first; inputs (N,):
    places in them."""
    more = np.full(len(rows) - len(among.items), -np.inf, np.float32)
    return Candidates(rows, among.targets, np.concatenate([among.correction, more]), inputs)


def drop(
    values: torch.Tensor,
    share: float,
    rng: np.random.Generator,
    whole: tuple[int, ...] | None = None,
    part: Any = np.s_[:],
) -> torch.Tensor:
    """Dropout by random bytes, so in steps of 1/256: in a quarter of the time of torch's own generator.

    whole, part: where ``values`` are only a part of what all processes drop from: the shape of that, and an index.
    """
    if not share:
        return values
    dropped = round(share * 256)
    kept = torch.from_numpy(rng.integers(0, 256, whole or tuple(values.shape), np.uint8)[part] >= dropped)
    return values * kept * (256 / (256 - dropped))
