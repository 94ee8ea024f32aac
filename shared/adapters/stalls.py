"""The end of a process whose loop hangs."""

from __future__ import annotations

import faulthandler
import logging
import os
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

EXIT_CODE = 70


def end_on_stall(turned_at: Callable[[], float], stall_s: float, setting: str) -> None:
    """From now on, end the process if its loop hangs, in a client library say: a restart is safe at any time, waiting
    is not. turned_at: when the loop last came round, by time.monotonic(); setting: the name of ``stall_s``.
    """

    def watch() -> None:
        while True:
            time.sleep(min(1.0, stall_s / 4))
            idle_s = time.monotonic() - turned_at()
            if idle_s > stall_s:
                log.critical("no turn of a loop for %.0f s (%s): ending, to be started again", idle_s, setting)
                faulthandler.dump_traceback(all_threads=True)
                os._exit(EXIT_CODE)

    threading.Thread(target=watch, name="stalls", daemon=True).start()
