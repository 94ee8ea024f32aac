"""The gate: a challenger replaces the champion only if it is better on the newest events, and that is no chance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from shared.model.bootstrap import Paired, paired_bootstrap
from shared.model.dismissals import Ints
from shared.model.evaluate import event_ranks, metrics_of
from shared.model.group import ALONE, Group
from shared.model.holdout import Newest
from shared.model.network import Weights

K = 20
LEAST_SEQUENCES = 10
"""So few cannot tell a better model from chance: of equally good challengers one in four is better in .95 of the draws
of three sequences, one in twelve of ten."""
SLICE_EVENTS = 2000
"""Asked about before the clock is looked at again."""


@dataclass(frozen=True, slots=True)
class GateRules:
    """When a challenger is better."""

    margin: float = 0.005
    """Relative gain in Recall@20 over the champion. A swap costs every user a state rebuilt from the last few items:
    not worth it for less than this half percent, which a large enough log would call significant."""
    confidence: float = 0.95
    """Share of the bootstrap's resamples in which it is better by more than the margin"""


@dataclass(frozen=True, slots=True)
class Asked:
    """Ranks of the same events by all who were asked, (E,) int64; 0: unknown to it, or with nothing known before."""

    sequence: Ints
    """(E,) which events hang together"""
    challenger: Ints
    champion: Ints | None
    popularity: Ints
    whole: bool = True
    """False: time was short, and only a random part of the sequences was asked about"""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision, and why; ``numbers`` is what goes into the manifest."""

    promoted: bool
    reason: str
    numbers: dict[str, Any]


def ask(
    newest: Newest,
    challenger: Weights,
    champion: Weights | None,
    *,
    spent: Callable[[], float] = lambda: 0.0,
    on_progress: Callable[[int, int], None] | None = None,
    group: Group = ALONE,
    seed: int = 1,
) -> Asked:
    """Full ranking of the newest events, given all that came before in their sequence. The challenger knows the first
    ``newest.known`` items, the champion the first of those. spent: share of the time; at 1 no more is begun."""
    popular = _popularity(newest)
    answers = [np.zeros((4, 0), np.int64)]
    total, done = int(newest.asked.sum()), 0
    for part, positions in _slices(newest, seed):
        if done and _agreed(spent(), group) >= 1:
            break
        items = part.whole.items[part.asked]
        answer = [
            positions[part.sequence[part.asked]],
            _ranks(part, challenger, newest.known, group),
            _ranks(part, champion, len(champion["item_bias"]), group) if champion else np.zeros_like(items),
            np.where(items < newest.known, popular[np.minimum(items, newest.known - 1)], 0),
        ]
        answers.append(np.stack(answer))
        done += len(items)
        if on_progress:
            on_progress(done, total)
    sequence, of_challenger, of_champion, of_popularity = np.concatenate(answers, 1)
    return Asked(sequence, of_challenger, of_champion if champion else None, of_popularity, done == total)


def _popularity(newest: Newest) -> Ints:
    """(known items,) the rank of each by how often it occurs in the older part; of equals, one comes first. Did
    ties count against it, as they do for a model, chance would beat it in a flat catalogue."""
    counts = np.bincount(newest.older.items, minlength=newest.known)
    ranks = np.empty(newest.known, np.int64)
    ranks[np.argsort(-counts, kind="stable")] = np.arange(1, newest.known + 1)
    return ranks


def _slices(newest: Newest, seed: int) -> list[tuple[Newest, Ints]]:
    """Random parts of the sequences, of about SLICE_EVENTS asked events: (part, positions of its sequences)."""
    count = len(newest.whole)
    parts = max(1, int(newest.asked.sum()) // SLICE_EVENTS)
    order = np.random.default_rng(seed).permutation(count)
    chosen = [np.sort(positions) for positions in np.array_split(order, min(parts, max(1, count)))]
    return [(newest.select(positions), positions) for positions in chosen if len(positions)]


def _ranks(part: Newest, weights: Weights, items: int, group: Group) -> Ints:
    """(asked events,) ranks by a model that knows the first ``items`` items; of others no rank, which is a miss."""
    sequences, asked, left = part.known_to(items)
    ranks = np.zeros(len(left), np.int64)
    ranks[left] = event_ranks(weights, sequences, asked, group=group).numpy()
    return ranks[part.asked]


def _agreed(value: float, group: Group) -> float:
    """The first process' value, in all processes."""
    told = torch.tensor([0.0 if group.rank else value])
    group.add(told)
    return float(told)


def judge(asked: Asked, rules: GateRules, champion: str | None) -> Verdict:
    """champion: its version; None: there is none, then popularity alone is to be beaten."""
    numbers: dict[str, Any] = {
        "metric": f"recall{K}",
        "margin": rules.margin,
        "required_confidence": rules.confidence,
        "events": len(asked.challenger),
        "sessions": len(np.unique(asked.sequence)),
        "challenger": _told(asked.challenger),
        "champion": None,
        "popularity": _told(asked.popularity),
    }
    over_popularity = _compared(asked, asked.popularity, 0.0)
    numbers["over_popularity"] = _comparison(over_popularity)
    reasons = []
    if asked.champion is not None:
        over_champion = _compared(asked, asked.champion, rules.margin)
        numbers["champion"] = {"version": champion, **_told(asked.champion)}
        numbers["over_champion"] = _comparison(over_champion)
        if over_champion.confidence < rules.confidence:
            reasons.append(_short_of(over_champion, rules.confidence, f"champion {champion} by {rules.margin:.1%}"))
    if over_popularity.confidence < rules.confidence:
        reasons.append(_short_of(over_popularity, rules.confidence, "popularity"))
    if asked.champion is not None and 0 < numbers["sessions"] < LEAST_SEQUENCES:
        reasons.append(f"only {numbers['sessions']} users' sequences were asked, {LEAST_SEQUENCES} are needed")
    if not len(asked.challenger):
        reasons = ["there was no event to ask about"]
    reason = "; ".join(reasons) or "better than " + " and ".join(
        [f"champion {champion}", "popularity"] if asked.champion is not None else ["popularity"]
    )
    promoted = not reasons
    return Verdict(promoted, reason, {"decision": "promoted" if promoted else "kept back", "reason": reason, **numbers})


def _short_of(found: Paired, needed: float, whom: str) -> str:
    return f"better than {whom} with confidence {found.confidence:.3f}, less than {needed}"


def _told(ranks: Ints) -> dict[str, float]:
    found = metrics_of(torch.from_numpy(np.where(ranks > 0, ranks, np.iinfo(np.int64).max)), K)
    return {"recall20": round(found.recall20, 5), "mrr20": round(found.mrr20, 5)}


def _compared(asked: Asked, other: Ints, margin: float) -> Paired:
    _, sequence = np.unique(asked.sequence, return_inverse=True)
    mine, theirs = (np.bincount(sequence, (ranks > 0) & (ranks <= K)) for ranks in (asked.challenger, other))
    return paired_bootstrap(mine, theirs, margin)


def _comparison(found: Paired) -> dict[str, float | None]:
    values = {"confidence": found.confidence, "gain": found.gain, "gain_low": found.low, "gain_high": found.high}
    return {name: None if value is None else round(value, 5) for name, value in values.items()}
