"""Every default of the model and its training, with the reason for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from shared.core.errors import SettingsInvalid

DEFAULT_EPOCHS = 12
MAX_EPOCHS = 30
"""Of an automatic choice: a log of a few thousand events has nothing more to say after that."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shape of the network."""

    width: int = 128
    """Hidden units and embedding length: they are tied. 256 bytes a user as half floats."""


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """How a model is trained. Chosen on validation parts cut from training logs; see CHANGELOG."""

    model: ModelConfig = ModelConfig()
    seed: int = 1
    epochs: int = 0
    """0: twelve, and more for a small log, so that there are ``min_updates``. Validation MRR levels off after ten; the
    last two are shorter (``newest``)."""
    min_updates: int = 700
    """A log of 19,000 pairs of Diginetica: Recall .315 after 450, .366 after 760, .382 after 1,100; of rsc15_64: .601,
    .605, .601; 16,000 words of a text: the next one among three .179 after 370, .190 after 620."""
    batch_events: int = 512
    """(input, target) pairs in one update. Fixed in events, not sessions: short and long sessions weigh the same."""
    truncate: int = 32
    """Steps that the gradient flows back. Longer sessions go on in the next window with their state carried."""
    bptt: int = 1
    """1: the gradient flows back through the steps of a window; 0: it ends at each, as in the reference GRU4Rec."""
    negatives: int = 2048
    """Items drawn for one update's sampled softmax; 0, or a catalogue that is hardly larger: full softmax."""
    popularity_power: float = 0.75
    """Negatives are drawn in proportion to popularity to this power: between uniform (0) and popularity (1)."""
    learning_rate: float = 5e-3
    warmup: float = 0.02
    """Share of all updates in which the learning rate rises from zero."""
    final_rate: float = 0.05
    """The learning rate falls linearly to this share of its height."""
    newest: float = 0.33
    """Share of the pairs, the newest, that the last sixth of the epochs learns alone, at a rate that is low by then:
    what comes next resembles the newest sessions most. 1: all epochs learn all sessions. CHANGELOG: what it gains."""
    level: float = 1.0
    """How much of what level.py finds is applied to a finished model: what became popular in the last week of a log of
    months. Validation Recall, MRR on Diginetica: .524, .169 without, .528, .171 with. 0: nothing is."""
    tune_rate: float = 0.2
    """Share of the learning rate at which a finished model learns sessions that came later."""
    tune_epochs: int = 2
    """Epochs of that: with these two numbers as good as training anew on everything, for a tenth of its time."""
    dismiss_weight: float = 1.0
    """Of a dismissal against an (input, target) pair: see dismissal_loss. Without dismissals it changes nothing."""
    dismiss_share: float = 0.5
    """All dismissals of an item together weigh at most this share of how often it was chosen. What is offered most is
    turned down most, even where nothing suits better: on 16,000 words of a text, each typed after the three commonest
    were turned down, the next one is among three in .179 without dismissals, .178 so, .144 with all at full weight."""
    scale: float = 14.0
    """In training an item's score is this many times the cosine between its embedding and the hidden state; items have
    embeddings of length one and no bias (Gupta et al. 2019, NISER). 0: their product, and a bias.
    Without it frequent items have the longest embeddings and crowd the rankings; see CHANGELOG for what it gains."""
    repeats_below: float = 0.01
    """Where the log shows that a smaller share of actions is on the current item again, it is never offered."""
    clip_norm: float = 1.0
    """Gradients with a larger norm are scaled down to it."""
    input_dropout: float = 0.25
    """Share of the input embedding's numbers zeroed in training, in steps of 1/256; the weights know nothing of it.
    Validation Recall, MRR on rsc15_64: .698, .317 without, .708, .319 with; Diginetica: .438, .128 and .452, .123."""
    hidden_dropout: float = 0.0
    """The same for hidden states on their way to the scores; the recurrence itself is never thinned. A quarter more
    gives .710, .318 and .457, .119: the ranking's head loses more than its tail gains."""
    matmul: str = "auto"
    """Of the loss: fp32, bf16, or auto: bf16 where the CPU has tiles for it (AMX), which costs no accuracy."""
    patience: int = 0
    """Stop after so many epochs without a better validation MRR; 0: train all epochs."""
    pool_batches: int = 64
    """Sessions are sorted by length within pools of so many batches: bounds padding, and what is in memory."""

    def __post_init__(self) -> None:
        _check("width", self.model.width, 1, 4096)
        _check("epochs", self.epochs, 0, 10_000)
        _check("batch_events", self.batch_events, 1, 1 << 20)
        _check("truncate", self.truncate, 1, 10_000)
        _check("bptt", self.bptt, 0, 1)
        _check("negatives", self.negatives, 0, 1 << 20)
        _check("popularity_power", self.popularity_power, 0, 1)
        _check("learning_rate", self.learning_rate, 1e-9, 10)
        _check("newest", self.newest, 0.001, 1)
        _check("level", self.level, 0, 1)
        _check("dismiss_weight", self.dismiss_weight, 0, 1000)
        _check("dismiss_share", self.dismiss_share, 0, 1000)
        _check("scale", self.scale, 0, 1000)
        _check("repeats_below", self.repeats_below, 0, 1)
        if self.matmul not in ("auto", "fp32", "bf16"):
            raise SettingsInvalid(f"matmul is {self.matmul!r}, must be auto, fp32 or bf16")
        _check("input_dropout", self.input_dropout, 0, 0.99)
        _check("hidden_dropout", self.hidden_dropout, 0, 0.99)

    def settled(self, pairs: int) -> TrainConfig:
        """With the number of epochs decided for so many (input, target) pairs."""
        if self.epochs:
            return self
        needed = math.ceil(self.min_updates * self.batch_events / max(1, pairs))
        return replace(self, epochs=min(MAX_EPOCHS, max(DEFAULT_EPOCHS, needed)))

    def epoch_shares(self) -> list[float]:
        """For each epoch, the share of the pairs, the newest, that it learns."""
        last = round(self.epochs / 6)
        return [1.0] * (self.epochs - last) + [self.newest] * last

    def to_json(self) -> dict[str, Any]:
        """For the manifest and for checkpoints."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Reads what ``to_json`` wrote; settings that this version does not know are ignored."""
        known = {f.name for f in fields(cls)}
        given = {name: value for name, value in values.items() if name in known and name != "model"}
        model = ModelConfig(**{name: int(value) for name, value in values.get("model", {}).items() if name == "width"})
        return replace(cls(model=model), **given)


def _check(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise SettingsInvalid(f"{name} is {value}, must be {low} to {high}")
