"""The HTTP server from its settings: who may come in, what a connection may cost, uvicorn around the application."""

from __future__ import annotations

import uvicorn

from services.recommender.api_keys import KeyFileWatch, KeyRing, keys_of_setting
from services.recommender.connections import ConnectionLimits, limited_protocol
from services.recommender.guard import App, HttpRules
from services.recommender.metrics import RecommenderMetrics
from services.recommender.rate_limit import RateLimit
from shared.adapters.settings import HttpSettings, listed


class Door:
    """The rules for callers, kept up to date while started."""

    def __init__(self, settings: HttpSettings, metrics: RecommenderMetrics) -> None:
        fixed = keys_of_setting(settings.http_api_keys.get_secret_value())
        ring = KeyRing(fixed, needed=bool(fixed or settings.http_api_keys_file))
        burst = settings.http_rate_burst or max(1, round(2 * settings.http_rate_per_s))
        self.rules = HttpRules(
            ring,
            RateLimit(settings.http_rate_per_s, burst) if settings.http_rate_per_s else None,
            settings.http_public_metrics,
            settings.http_max_requests,
            settings.http_max_body_bytes,
            settings.http_body_timeout_s,
        )
        self._watch: KeyFileWatch | None = None

        def looked(good: bool) -> None:
            metrics.key_file.labels("ok" if good else "damaged").inc()
            metrics.api_keys.set(len(ring.keys))

        metrics.api_keys.set(len(fixed))
        if settings.http_api_keys_file:
            self._watch = KeyFileWatch(ring, fixed, settings.http_api_keys_file, looked)

    @property
    def problem(self) -> str | None:
        """What is wrong with the file of keys, None if nothing is."""
        return self._watch.problem if self._watch is not None else None

    def start(self) -> None:
        """Raises SettingsInvalid where there is a file of keys that cannot be read."""
        if self._watch is not None:
            self._watch.start()

    def stop(self) -> None:
        """Watch the file no more."""
        if self._watch is not None:
            self._watch.stop()


def http_server(app: App, settings: HttpSettings, metrics: RecommenderMetrics) -> uvicorn.Server:
    """uvicorn, not started yet."""
    limits = ConnectionLimits(
        settings.http_max_connections, settings.http_max_header_bytes, settings.http_header_timeout_s
    )
    trusted = listed(settings.http_trusted_proxies)
    return uvicorn.Server(
        uvicorn.Config(
            app,
            host=settings.http_host,
            port=settings.http_port,
            http=limited_protocol(limits, lambda reason: metrics.rejected.labels(reason).inc()),
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
