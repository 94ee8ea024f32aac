"""One training from the session log: `python -m services.retrainer.train_job`, settings from the environment.

The retrainer starts it as a child process. torchrun may start several of it, which then train together; with
TRAIN_PROCESSES it calls torchrun itself. Progress goes to stderr; the last line of stdout is JSON:

    {"outcome": "trained" | "empty window" | "too few sessions" | "interrupted" | "failed",
     "published": version or null, "promoted": bool, "gate": {...} or null, "train_s": seconds, ...}

Exit code 0: it did what could be done, also where the gate kept the challenger back or there was too little to learn.
2 (under torchrun 1): it failed, "error" says why. 143: SIGTERM. Whenever it is interrupted, SIGKILL included, the
registry is whole; the next run goes on from the last epoch where the window of the log is still the same, and starts
anew where it is not.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

import torch

from services.retrainer.progress import ProgressReport
from services.retrainer.training import NOTHING, Training
from shared.adapters.registry import FileModelRegistry
from shared.adapters.session_log import FileSessionLog
from shared.adapters.settings import EventSettings, RegistrySettings, RetrainerSettings, TrainSettings
from shared.adapters.torchrun import torch_group
from shared.core.errors import DriftwoodError

FAILED, INTERRUPTED, TERMINATED = 2, 130, 143


class Terminated(BaseException):
    """SIGTERM came."""


def main() -> int:
    """See the top of this file."""
    signal.signal(signal.SIGTERM, _terminated)
    try:
        settings = TrainSettings()
        if settings.train_processes > 1 and "WORLD_SIZE" not in os.environ:
            _by_torchrun(settings.train_processes)
        torch.set_num_threads(settings.train_threads)
        log = FileSessionLog(RetrainerSettings().session_log_uri)
        registry = FileModelRegistry(RegistrySettings().model_uri)
        with torch_group() as group, ProgressReport(quiet=group.rank > 0) as report:
            outcome = Training(settings, EventSettings().rules(), log, registry, report, group).run()
    except DriftwoodError as error:
        print(f"error: {error}", file=sys.stderr)
        return _end({"outcome": "failed", "error": str(error), **NOTHING}, FAILED)
    except Terminated:
        return _end({"outcome": "interrupted", **NOTHING}, TERMINATED)
    except KeyboardInterrupt:
        return _end({"outcome": "interrupted", **NOTHING}, INTERRUPTED)
    return _end(outcome, 0)


def _by_torchrun(processes: int) -> None:
    """In place of this process; does not return."""
    run = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    os.execv(sys.executable, [sys.executable, *run, "-m", "services.retrainer.train_job"])


def _terminated(number: int, frame: object) -> None:
    raise Terminated


def _end(outcome: dict[str, Any] | None, status: int) -> int:
    if outcome is not None:
        print(json.dumps(outcome), flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
