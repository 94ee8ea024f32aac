"""What one connection may cost: uvicorn's HTTP protocol with limits on heads, on silence and on their number."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from services.recommender.guard import PROBES
from services.recommender.responses import error_reply

_SURPLUS = 64
"""Connections over the limit that are kept until their head tells whether it is a probe."""
_SURPLUS_S = 2.0
_PHRASES = {408: b"Request Timeout", 431: b"Request Header Fields Too Large", 503: b"Service Unavailable"}


@dataclass(frozen=True)
class ConnectionLimits:
    """See the settings HTTP_MAX_CONNECTIONS, HTTP_MAX_HEADER_BYTES, HTTP_HEADER_TIMEOUT_S."""

    connections: int = 2000
    header_bytes: int = 64 << 10
    header_timeout_s: float = 10.0


def limited_protocol(limits: ConnectionLimits, rejected: Callable[[str, int | None], None]) -> type[HttpToolsProtocol]:
    """The protocol class for uvicorn. rejected: told the reason of each connection that is ended, and the status that
    it got, if any.

    Over the limit of connections, probes are still answered: an orchestrator that gets no answer ends the process, and
    with it the connections that fill it.

    uvicorn itself waits for ever for a request that does not come, or comes a byte a minute, and keeps whatever is sent
    as a head. And after an answer that did not wait for the body, it reads on for as long as the body goes on.
    """

    class Limited(HttpToolsProtocol):
        _timer: asyncio.TimerHandle | None = None
        _surplus = False
        _in_head = False
        _head_bytes = 0

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._surplus = len(self.connections) > limits.connections
            if len(self.connections) > limits.connections + _SURPLUS:
                self._too_many()
            else:
                patience_s = min(_SURPLUS_S, limits.header_timeout_s) if self._surplus else limits.header_timeout_s
                self._timer = self.loop.call_later(patience_s, self._too_slow)

        def connection_lost(self, exc: Exception | None) -> None:
            self._head_came()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            self._head_bytes += len(data)
            super().data_received(data)
            if self._in_head and not self.transport.is_closing():
                if self._head_bytes > limits.header_bytes:
                    self._too_large()
                elif self._timer is None:
                    self._timer = self.loop.call_later(limits.header_timeout_s, self._too_slow)
            else:
                self._head_bytes = 0

        def on_message_begin(self) -> None:
            self._in_head = True
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._in_head = False
            self._head_came()
            if self._head_bytes > limits.header_bytes:
                size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
                if size > limits.header_bytes:
                    self._too_large()
                    return
            if self._surplus and self.url.partition(b"?")[0].decode("latin-1") not in PROBES:
                self._too_many()
                return
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            if not self.transport.is_closing():
                super().on_body(body)

        def on_message_complete(self) -> None:
            self._head_bytes = 0  # what a body brought is no head, and another may begin in the same piece
            if self.cycle is not None:
                super().on_message_complete()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self._surplus:
                self.transport.close()
            # A body that nobody waited for: the connection ends, for its rest may be long in coming.
            if self.cycle.response_complete and self.cycle.more_body and not self.transport.is_closing():
                self._unset_keepalive_if_required()
                self.transport.close()

        def _head_came(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _too_slow(self) -> None:
            self._timer = None
            if self._in_head:
                text = f"the head of the request took more than HTTP_HEADER_TIMEOUT_S={limits.header_timeout_s:g}"
                self._end(408, text, "header_time")
            elif not self.transport.is_closing():
                rejected("header_time", None)
                self.transport.close()  # it never said anything: neither do we

        def _too_many(self) -> None:
            self._end(503, f"more than HTTP_MAX_CONNECTIONS={limits.connections} at the same time", "connections")

        def _too_large(self) -> None:
            text = f"the head of the request has more than HTTP_MAX_HEADER_BYTES={limits.header_bytes} bytes"
            self._end(431, text, "header_size")

        def _end(self, status: int, text: str, reason: str) -> None:
            if self.transport.is_closing():
                return
            # Where an earlier request of this connection is being answered, ours would stand in the middle of that.
            answers = self.cycle is None or self.cycle.response_complete
            rejected(reason, status if answers else None)
            self._head_came()
            if answers:
                reply = error_reply(status, text)
                lines = [b"HTTP/1.1 %d %s" % (status, _PHRASES[status])]
                lines += [name + b": " + value for name, value in reply.raw_headers()]
                self.transport.write(b"\r\n".join([*lines, b"connection: close", b"", reply.body]))
            self.transport.close()

    return Limited
