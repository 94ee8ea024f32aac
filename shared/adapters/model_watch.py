"""The model in use, changed live: a thread looks for a new version and loads it beside the old one."""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable

from shared.adapters.allocator import give_back, large_blocks_apart
from shared.core.errors import DriftwoodError, ModelDamaged
from shared.model.inference import InferenceModel

log = logging.getLogger(__name__)

_RETRY_DAMAGED_S = 5.0
"""A version that could not be read is read again so often: it may have been copied into place bit by bit."""


class ModelWatch:
    """Keeps ``current`` up to date with the registry.

    current_version: the version that the registry points to, None before the first. load: reads and checks a
    version. What fails to load is logged and told by ``problem``; the model before it stays in use.
    """

    def __init__(
        self,
        current_version: Callable[[], str | None],
        load: Callable[[str], InferenceModel],
        poll_s: float,
        on_change: Callable[[InferenceModel], None] = lambda model: None,
    ) -> None:
        self._current_version = current_version
        self._load = load
        self._poll_s = poll_s
        self._on_change = on_change
        self._stop = threading.Event()
        self._failed: tuple[str, float] | None = None
        self._thread = threading.Thread(target=self._run, name="model-watch", daemon=True)
        self.current: InferenceModel | None = None
        self.problem: str | None = None

    def start(self) -> None:
        """Look once, here and now, then go on in the background."""
        self.look()
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def look(self) -> None:
        """One look at the registry. Never raises a DriftwoodError: see ``problem``."""
        version: str | None = None
        try:
            version = self._current_version()
            if version is None or (self.current is not None and version == self.current.version):
                self.problem = None
                return
            if self._failed and self._failed[0] == version and time.monotonic() < self._failed[1]:
                return
            with large_blocks_apart():
                model = self._load(version)
        except DriftwoodError as error:
            if str(error) != self.problem:
                log.error("model %s not loaded: %s", version or "registry", error, extra={"model_version": version})
            self.problem = str(error)
            if version is not None and isinstance(error, ModelDamaged):
                self._failed = (version, time.monotonic() + _RETRY_DAMAGED_S)
            return
        log.info("model in use", extra={"model_version": version, "items": len(model.items)})
        with large_blocks_apart():
            self._on_change(model)
        self.current, self.problem, self._failed = model, None, None
        _settle()

    def _run(self) -> None:
        while not self._stop.wait(self._poll_s):
            try:
                self.look()
            except Exception as error:
                if str(error) != self.problem:
                    log.exception("model not looked for")
                self.problem = f"{type(error).__name__}: {error}"


def _settle() -> None:
    """What was replaced goes, and what stays is put out of the collector's sight.

    Python's collector would walk the catalogue again and again: measured, half the cost of decoding a state. What the
    last settling froze is looked at once more first: a cycle that held the old model would else never be found.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    give_back()
