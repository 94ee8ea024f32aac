"""One policy's way through a log, prequentially: each event is tested first and learnt from afterwards.

For each slice of the log (a minute or two), in this order:

1. the user's state before each of its events, while the events advance it one after the other;
2. the rank of each tested event's item in the full ranking of that state: a session's first event is not tested;
3. the slice is counted for the folded-in items and for the policy's engagement;
4. the policy trains or does not; a new model serves from the next slice on.

Nothing looks ahead: models and folded-in items know only earlier slices, states only earlier events.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from services.retrainer.adapt_fold import FoldedItems
from services.retrainer.adapt_learn import Learning, Made, next_model
from services.retrainer.adapt_policies import HOUR_MS, Policy
from services.retrainer.adapt_score import Ranks, ranks
from services.retrainer.adapt_states import Live, States
from services.retrainer.adapt_stream import Ints, Stream


@dataclass(frozen=True, slots=True)
class ReplayRules:
    """What is the same for all policies."""

    begin: int
    """Number of the first event that is replayed: those before made the first model"""
    slice_ms: int = 120_000
    most: int = 8192
    """Events of a slice, at most"""
    recent: int = 32
    """Items that a state is rebuilt from after a swap"""
    fold_min: int = 5
    fold_items: int = 2000
    half_life_s: float = 1200.0
    """Of what is popular now"""
    correct: bool = True
    """Whether the items that the model knows are corrected by it"""
    refine_items: int = 100
    """Of how many of them the rows follow those who choose them now"""
    score_every: int = 1
    """Of the tested events, one in so many is ranked"""
    least_new: int = 200
    """Events since the last training below which there is nothing to learn"""


@dataclass(slots=True)
class Curve:
    """Sums for each hour since the beginning: (hours,) arrays."""

    tested: Ints
    hits: Ints
    reciprocal: Ints
    plain_hits: Ints
    plain_reciprocal: Ints

    @classmethod
    def empty(cls, hours: int) -> Curve:
        """No event yet."""
        return cls(*(np.zeros(hours) for _ in range(5)))

    def add(self, hours: Ints, found: Ranks) -> None:
        """hours (T,): of each tested event."""
        size = len(self.tested)
        self.tested += np.bincount(hours, minlength=size)
        for ranked, hits, reciprocal in (
            (found.folded, self.hits, self.reciprocal),
            (found.plain, self.plain_hits, self.plain_reciprocal),
        ):
            hits += np.bincount(hours, ranked > 0, size)
            reciprocal += np.bincount(hours, np.where(ranked > 0, 1 / np.maximum(ranked, 1), 0.0), size)


@dataclass(slots=True)
class Outcome:
    """What came of a policy. Means over all tested events; ``trainings``: (ms, seconds), the first model's included."""

    curve: Curve
    began: int
    """ms: hour 0 of the curve begins"""
    trainings: list[tuple[int, float]] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        """As the command prints it; recall and MRR are of the ranking with folded-in items, as it is served."""
        curve = self.curve
        count = max(1.0, float(curve.tested.sum()))

        def mean(sums: Ints) -> float:
            return round(float(sums.sum()) / count, 5)

        return {
            "recall20": mean(curve.hits),
            "mrr20": mean(curve.reciprocal),
            "trainings": len(self.trainings),
            "train_s": round(sum(seconds for _, seconds in self.trainings), 2),
            "recall20_without_fold_in": mean(curve.plain_hits),
            "mrr20_without_fold_in": mean(curve.plain_reciprocal),
        }


def replay(
    stream: Stream,
    first: Made,
    policy: Policy,
    learning: Learning,
    rules: ReplayRules,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Outcome:
    """on_progress: events done."""
    began = int(stream.ts[rules.begin])
    hours = (int(stream.ts[-1]) - began) // HOUR_MS + 1
    outcome = Outcome(Curve.empty(hours), began, [(began, first.seconds)])
    model = Live(first.weights)
    states = States(stream, model, rules.recent)
    folded = FoldedItems(stream, rules.half_life_s, rules.fold_min, rules.fold_items, rules.correct, rules.refine_items)
    folded.shares.add(stream.items[: rules.begin], stream.ts[: rules.begin])
    folded.swap(model)
    learnt = rules.begin
    for begin, end in stream.slices(rules.begin, rules.slice_ms, rules.most):
        before = states.advance(begin, end)
        found, times = _test(stream, begin, end, before, folded, states, rules.score_every)
        outcome.curve.add((times - began) // HOUR_MS, found)
        folded.observe(begin, end, before)
        now = int(stream.ts[end - 1])
        due = policy.observe(now, found.folded)
        if due and end - learnt >= rules.least_new and end < len(stream):
            made = next_model(stream, end, learning, model.weights)
            model, learnt = Live(made.weights), end
            states.swap(model)
            folded.swap(model)
            policy.trained(now)
            outcome.trainings.append((now, made.seconds))
        on_progress(end)
    return outcome


def _test(
    stream: Stream, begin: int, end: int, before: torch.Tensor, folded: FoldedItems, states: States, every: int
) -> tuple[Ranks, Ints]:
    """(ranks (T,), times (T,)) of the tested events of a slice, ranked by what was known before it."""
    at = np.flatnonzero(stream.tested[begin:end])
    at = at[(begin + at) % every == 0]
    catalogue = folded.catalogue(int(stream.seen[begin - 1]), int(stream.ts[begin - 1]))
    targets = torch.from_numpy(stream.items[begin:end][at].astype(np.int64))
    left_out = torch.from_numpy(states.current(begin + at))
    return ranks(catalogue, before[torch.from_numpy(at)], targets, left_out), stream.ts[begin:end][at]
