"""Several policies over one log, each in a process of its own: side by side, and each training timed alone."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from ctypes import c_longlong
from dataclasses import dataclass
from typing import Any

import torch

from services.retrainer.adapt_learn import Learning, Made
from services.retrainer.adapt_policies import HOUR_MS, Every, Never, OnDrift, Policy
from services.retrainer.adapt_replay import Outcome, ReplayRules, replay
from services.retrainer.adapt_stream import Stream
from shared.core.drift import DriftRules

NAMES = ("never", "every", "drift", "oracle")
_LONGEST_FIRST = ("oracle", "every", "drift", "never")
_LOOK_S = 0.2


@dataclass(frozen=True, slots=True)
class Comparison:
    """What all policies share, and the numbers of each."""

    stream: Stream
    first: Made
    learning: Learning
    rules: ReplayRules
    drift: DriftRules
    every_ms: int

    def policy(self, name: str) -> Policy:
        """By its name in NAMES."""
        began = int(self.stream.ts[self.rules.begin])
        if name == "never":
            return Never()
        if name == "drift":
            return OnDrift(self.drift)
        return Every(self.every_ms if name == "every" else HOUR_MS, began)


def compare(
    work: Comparison, names: tuple[str, ...], jobs: int, on_progress: Callable[[Mapping[str, int]], None]
) -> dict[str, Outcome]:
    """Outcomes by name, the same whatever the number of ``jobs`` (processes). on_progress: name -> events done."""
    ordered = sorted(names, key=_LONGEST_FIRST.index)
    context = multiprocessing.get_context("spawn")
    counters: Any = context.Array(c_longlong, len(ordered), lock=False)
    with ProcessPoolExecutor(min(jobs, len(ordered)), context, _begin, (work, counters, os.getpid())) as pool:
        futures = {name: pool.submit(_one, name, number) for number, name in enumerate(ordered)}
        try:
            while not all(future.done() for future in futures.values()):
                on_progress(dict(zip(ordered, counters, strict=True)))
                _raise_failed(futures)
                time.sleep(_LOOK_S)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list((pool._processes or {}).values()):
                process.terminate()
            raise
        return {name: futures[name].result() for name in names}


def _raise_failed(futures: Mapping[str, Future[Outcome]]) -> None:
    for future in futures.values():
        if future.done():
            future.result()


_here: dict[str, Any] = {}


def _begin(work: Comparison, counters: Any, parent: int) -> None:
    """In a new process: what all its tasks share. It ends when the command does, however that ended."""
    torch.set_num_threads(1)
    _here.update(work=work, counters=counters)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _one(name: str, number: int) -> Outcome:
    work: Comparison = _here["work"]

    def progress(done: int) -> None:
        _here["counters"][number] = done

    return replay(work.stream, work.first, work.policy(name), work.learning, work.rules, progress)
