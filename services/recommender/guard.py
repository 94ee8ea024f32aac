"""Who may come in, and how many at once: keys, scopes, rates. The outermost layer of the HTTP server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from services.recommender.api_keys import METRICS, READ, WRITE, ApiKey, KeyRing
from services.recommender.metrics import RecommenderMetrics
from services.recommender.rate_limit import RateLimit, network_of
from services.recommender.responses import Reply, error_reply

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

PROBES = frozenset({"/healthz", "/readyz"})
"""No key, no limit: whoever asks whether we live must be answered."""
PUBLIC = frozenset({"/", "/docs", "/openapi.json", "/favicon.ico"})
"""No key: they hold no data, and are where a person enters the key."""
_STATIC = "/console/"
_STATIC_KINDS = (".html", ".js", ".css", ".svg", ".png", ".ico", ".woff2")
"""Files of the console page, told by both, and right below that path: what else may come to lie there needs a key."""

_NO_KEY = "a key is needed: Authorization: Bearer KEY, or X-API-Key: KEY"
_WRONG_KEY = "this key is not known"


@dataclass(frozen=True)
class HttpRules:
    """What callers may do. The default is an open door, but for its width."""

    keys: KeyRing = field(default_factory=lambda: KeyRing((), needed=False))
    rate: RateLimit | None = None
    public_metrics: bool = True
    max_requests: int = 1000
    max_body: int = 4 << 20
    body_timeout_s: float = 20.0


class _Refusal(Exception):
    def __init__(self, reason: str, reply: Reply) -> None:
        super().__init__(reason)
        self.reason = reason
        self.reply = reply


class Guard:
    """ASGI application around another one. Requests that it turns away cost little, and are counted by reason."""

    def __init__(self, app: App, rules: HttpRules, metrics: RecommenderMetrics) -> None:
        self._app = app
        self._rules = rules
        self._checks = rules.keys.needed or rules.rate is not None
        self._most = rules.max_requests
        self._now = 0
        self._rejected = metrics.rejected
        self._requests = metrics.requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or scope["path"] in PROBES:
            await self._app(scope, receive, send)
            return
        try:
            if self._now >= self._most:
                raise _Refusal("busy", error_reply(503, f"more than HTTP_MAX_REQUESTS={self._most} at the same time"))
            if self._checks:
                self._check(scope)
        except _Refusal as refusal:
            self._rejected.labels(refusal.reason).inc()
            self._requests.labels("rejected", str(refusal.reply.status)).inc()
            await send_reply(send, refusal.reply)
            return
        self._now += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._now -= 1

    def _check(self, scope: Scope) -> None:
        """Raises _Refusal."""
        key: ApiKey | None = None
        refusal: _Refusal | None = None
        if self._rules.keys.needed and not self._is_public(scope["path"]):
            try:
                key = self._key(scope)
            except _Refusal as error:
                refusal = error
        if self._rules.rate is not None and not (scope["path"] == "/metrics" and refusal is None):
            self._spend(self._rules.rate, key, scope)  # one who tries keys spends, too
        if refusal is not None:
            raise refusal

    def _is_public(self, path: str) -> bool:
        if path == "/metrics":
            return self._rules.public_metrics
        return path in PUBLIC or (path.startswith(_STATIC) and path.count("/") == 2 and path.endswith(_STATIC_KINDS))

    def _key(self, scope: Scope) -> ApiKey:
        given = _given(scope)
        if not given:
            raise _Refusal("no_key", _unauthorized(_NO_KEY))
        key = self._rules.keys.find(given)
        if key is None:
            raise _Refusal("wrong_key", _unauthorized(_WRONG_KEY))
        wanted = _wanted(scope["method"], scope["path"])
        if wanted not in key.scopes:
            raise _Refusal("scope", error_reply(403, f"key {key.name!r} has not the scope {wanted!r}"))
        return key

    def _spend(self, rate: RateLimit, key: ApiKey | None, scope: Scope) -> None:
        # A key of a file may be called as it likes: a blank before it keeps it apart from addresses.
        caller = f" {key.name}" if key is not None else network_of(scope["client"][0] if scope.get("client") else "")
        wait_s = rate.take(caller)
        if wait_s:
            reply = error_reply(429, "too many requests: see Retry-After (HTTP_RATE_PER_S)")
            raise _Refusal("rate", reply._replace(headers=[(b"retry-after", b"%d" % max(1, -int(-wait_s // 1)))]))


def _given(scope: Scope) -> bytes:
    """The key in the headers; b"" where there is none."""
    for name, value in scope["headers"]:
        if name == b"x-api-key":
            return bytes(value.strip())
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return bytes(value[7:].strip())
    return b""


def _wanted(method: str, path: str) -> str:
    if path == "/metrics":
        return METRICS
    return READ if method in ("GET", "HEAD", "OPTIONS") or path == "/v1/recommendations" else WRITE


def _unauthorized(text: str) -> Reply:
    return error_reply(401, text)._replace(headers=[(b"www-authenticate", b'Bearer realm="driftwood"')])


async def send_reply(send: Send, reply: Reply) -> None:
    """The whole answer."""
    await send({"type": "http.response.start", "status": reply.status, "headers": reply.raw_headers()})
    await send({"type": "http.response.body", "body": reply.body})
