"""At image build: load what the services load, so that its byte code is there, and see that it works.

A step of training makes torch load what it loads late. Everything else in the image is compiled when it is needed.
"""

from __future__ import annotations

import importlib
import pkgutil

import torch

import services
import shared


def load_all() -> int:
    """Import every module of ours; how many there are. Raises ImportError where one misses what should be there."""
    count = 0
    for package in (services, shared):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
            count += 1
    return count


def train_a_step() -> None:
    """One step of an optimizer over a GRU, which imports another thousand modules."""
    network = torch.nn.GRU(4, 4)
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.zeros(2, 1, 4))[0].sum().backward()
    optimizer.step()


if __name__ == "__main__":
    modules = load_all()
    train_a_step()
    print(f"{modules} modules of ours loaded, torch {torch.__version__} trains")  # noqa: T201
