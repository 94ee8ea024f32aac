"""Training checkpoints: one safetensors file each, replaced at once, with the run's numbers as JSON in its header."""

from __future__ import annotations

import json
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors

from shared.core.errors import ModelDamaged, Unavailable
from shared.model.train import TrainerState


class Checkpoints:
    """The last state of one training run, in ``folder``; runs with other data or settings use other folders."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "last.safetensors"

    def save(self, state: TrainerState) -> None:
        """Replace the last state; a crash leaves the one before. Raises Unavailable."""
        draft = self.path.with_suffix(".draft")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            safetensors.save_file(state.tensors, draft, metadata={"meta": json.dumps(state.meta)})
            with draft.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(draft, self.path)
        except (OSError, SafetensorError) as error:  # the latter is what safetensors makes of a full disk
            draft.unlink(missing_ok=True)
            raise Unavailable(f"checkpoint {self.path}: {error}") from error

    def last(self) -> TrainerState | None:
        """None: there is none. Raises ModelDamaged, Unavailable."""
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                meta = json.loads((file.metadata() or {})["meta"])
                return TrainerState({name: file.get_tensor(name) for name in file.keys()}, meta)  # noqa: SIM118
        except (SafetensorError, KeyError, ValueError) as error:
            raise ModelDamaged(f"checkpoint {self.path}: {error}") from error
        except OSError as error:
            raise Unavailable(f"checkpoint {self.path}: {error}") from error

    def clear(self) -> None:
        """The run is over."""
        self.path.unlink(missing_ok=True)
        if self.path.parent.is_dir() and not any(self.path.parent.iterdir()):
            self.path.parent.rmdir()
