"""Processes that torchrun started, as a Group (shared/model/group.py), talking over gloo."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from safetensors import torch as safetensors
from torch import distributed

from shared.core.errors import SettingsInvalid, Unavailable
from shared.model.group import ALONE, Group

_PR_SET_PDEATHSIG = 1
SILENCE_S = 1800.0
"""A process that says nothing for so long is gone: longer than the first one takes to read a log."""


class TorchGroup:
    """The default process group of torch.distributed."""

    def __init__(self) -> None:
        self.rank = distributed.get_rank()
        self.size = distributed.get_world_size()

    def add(self, tensor: torch.Tensor) -> None:
        """See Group."""
        try:
            distributed.all_reduce(tensor)
        except RuntimeError as error:
            raise Unavailable(f"another process of the training is gone: {error}") from error

    def share(self, tensors: dict[str, torch.Tensor] | None) -> dict[str, torch.Tensor]:
        """See Group."""
        content = safetensors.save(tensors or {}) if not self.rank else b""
        size = torch.tensor([len(content)])
        self.add(size)  # of the others: 0
        held = torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else None
        sent = held if held is not None else torch.empty(int(size), dtype=torch.uint8)
        try:
            distributed.broadcast(sent, 0)
        except RuntimeError as error:
            raise Unavailable(f"another process of the training is gone: {error}") from error
        return dict(safetensors.load(sent.numpy().tobytes()))


def _end_with_parent() -> None:
    """torchrun gives each process a session of its own, which no signal to torchrun's reaches: were it killed, they
    would train on. Linux only, as services/stack/child.py."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


@contextmanager
def torch_group() -> Iterator[Group]:
    """The processes that torchrun started together with this one; without torchrun, this one alone.

    Raises SettingsInvalid, Unavailable.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    _end_with_parent()
    try:
        distributed.init_process_group("gloo", timeout=timedelta(seconds=SILENCE_S))
    except ValueError as error:
        raise SettingsInvalid(f"WORLD_SIZE is set, but not as torchrun does: {error}") from error
    except RuntimeError as error:
        raise Unavailable(f"the other processes of the training: {error}") from error
    try:
        yield TorchGroup()
    finally:
        distributed.destroy_process_group()
