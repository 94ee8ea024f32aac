"""The HTTP server: who may come in, what a connection may cost, uvicorn around the application."""

from __future__ import annotations

from collections.abc import Sequence

import uvicorn

from services.recommender.api_keys import ApiKey, KeyFile, KeyFileWatch, KeyRing
from services.recommender.connections import ConnectionLimits, limited_protocol
from services.recommender.guard import App
from services.recommender.metrics import RecommenderMetrics


class Keys:
    """Those of the setting, and those of the file, if there is one, kept up to date while started."""

    def __init__(self, fixed: Sequence[ApiKey], file: KeyFile | None, metrics: RecommenderMetrics) -> None:
        self.ring = ring = KeyRing(fixed, needed=bool(fixed or file))

        def looked(good: bool) -> None:
            metrics.key_file.labels("ok" if good else "damaged").inc()
            metrics.api_keys.set(len(ring.keys))

        metrics.api_keys.set(len(fixed))
        self._watch = KeyFileWatch(ring, fixed, file, looked) if file is not None else None

    @property
    def problem(self) -> str | None:
        """What is wrong with the file, None if nothing is."""
        return self._watch.problem if self._watch is not None else None

    def start(self) -> None:
        """Raises SettingsInvalid where there is a file and it cannot be read."""
        if self._watch is not None:
            self._watch.start()

    def stop(self) -> None:
        """Watch the file no more."""
        if self._watch is not None:
            self._watch.stop()


def http_server(
    app: App, host: str, port: int, limits: ConnectionLimits, trusted: Sequence[str], metrics: RecommenderMetrics
) -> uvicorn.Server:
    """uvicorn, not started yet. trusted: proxies whose X-Forwarded-For is believed."""

    def rejected(reason: str, status: int | None) -> None:
        metrics.rejected.labels(reason).inc()
        if status is not None:
            metrics.requests.labels("rejected", str(status)).inc()

    return uvicorn.Server(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            http=limited_protocol(limits, rejected),
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            date_header=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=10,
            # uvicorn itself would believe X-Forwarded-For from 127.0.0.1.
            proxy_headers=bool(trusted),
            forwarded_allow_ips=list(trusted),
        )
    )
