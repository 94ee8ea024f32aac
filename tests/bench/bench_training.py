"""Training speed: events a second, and the share of this machine's measured matrix-multiply peak that goes into it."""

from __future__ import annotations

import statistics
import time

import numpy as np
import torch

from shared.model.config import TrainConfig
from shared.model.dataset import Sessions
from shared.model.loss import bf16_is_faster
from shared.model.train import Trainer
from tests.bench.world import say

ITEMS = 20_000
LENGTHS = (2, 3, 3, 4, 5, 6, 8, 12)


def synthetic(pairs: int) -> Sessions:
    """Sessions of 2 to 12 events on items drawn by Zipf's law."""
    rng = np.random.default_rng(1)
    lengths: list[int] = []
    while sum(lengths) - len(lengths) < pairs:
        lengths.append(LENGTHS[len(lengths) % len(LENGTHS)])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    items = (rng.zipf(1.3, int(starts[-1])) - 1) % ITEMS
    return Sessions(items=items.astype(np.int64), starts=starts.astype(np.int64), ended_at=np.arange(len(lengths)))


def matmul_peak(kind: torch.dtype) -> float:
    """Multiply-adds a second of a large product of two such matrices, times two."""
    a, b = torch.randn(2048, 2048).to(kind), torch.randn(2048, 2048).to(kind)
    times = []
    a @ b
    for _ in range(9):
        began = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - began)
    return 2 * 2048**3 / statistics.median(times)


def run(quick: bool = False) -> dict[str, float]:
    """Prints the median of several epochs."""
    config = TrainConfig(epochs=100)
    sessions = synthetic(20_000 if quick else 60_000)
    trainer = Trainer(config, sessions, ITEMS)
    rates = []
    for _ in range(2 if quick else 5):
        began = time.perf_counter()
        progress = trainer.run()
        rates.append(progress.epoch_events / (time.perf_counter() - began))
    rate, peak = statistics.median(rates[1:]), matmul_peak(torch.float32)
    width = config.model.width
    candidates = config.negatives + config.batch_events
    # Forward and backward (three products for one): input and recurrent gates, and the scores of the candidates.
    flops = 3 * 2 * (2 * 3 * width * width + candidates * width)
    share = rate * flops / peak
    say(
        f"training: {rate:,.0f} events/s (width {width}, {ITEMS:,} items, {config.negatives} negatives); "
        f"{rate * flops / 1e9:.0f} of {peak / 1e9:.0f} GFLOP/s of a plain fp32 matrix product: {share:.2f}"
    )
    found = {"events_per_s": rate, "share_of_peak": share}
    if bf16_is_faster():  # then the scores, four fifths of the work, are multiplied in it
        low = matmul_peak(torch.bfloat16)
        found["share_of_bf16_peak"] = rate * flops / low
        say(f"training: {found['share_of_bf16_peak']:.2f} of the {low / 1e9:.0f} GFLOP/s of a bfloat16 product")
    return found
