"""Training speed: events a second, and the share of this machine's measured matrix-multiply peak that goes into it."""

from __future__ import annotations

import statistics
import time

import numpy as np
import torch

from shared.model.config import TrainConfig
from shared.model.dataset import Sessions
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


def matmul_peak() -> float:
    """Multiply-adds a second of a large fp32 product, times two."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    times = []
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
    rate, peak = statistics.median(rates[1:]), matmul_peak()
    width = config.model.width
    candidates = config.negatives + config.batch_events
    # Forward and backward (three products for one): input and recurrent gates, and the scores of the candidates.
    flops = 3 * 2 * (2 * 3 * width * width + candidates * width)
    share = rate * flops / peak
    say(
        f"training: {rate:,.0f} events/s (width {width}, {ITEMS:,} items, {config.negatives} negatives); "
        f"{rate * flops / 1e9:.0f} of {peak / 1e9:.0f} GFLOP/s of a plain fp32 matrix product: {share:.2f}"
    )
    return {"events_per_s": rate, "share_of_peak": share}
