"""The files of the console page, as they are sent: nothing is built, nothing comes from elsewhere."""

from __future__ import annotations

import hashlib
from importlib import resources
from typing import NamedTuple

INDEX = "index.html"
TYPES = {"html": b"text/html; charset=utf-8", "css": b"text/css", "js": b"text/javascript", "svg": b"image/svg+xml"}
NAMES = (
    "app.css", "chart.css", "icon.svg",
    "api.js", "chart.js", "dom.js", "empty.js", "format.js", "journal.js", "live.js", "main.js", "marks.js",
    "models.js", "ranking.js", "scale.js", "series.js", "session.js", "spark.js", "user.js",
)  # fmt: skip
PATHS = frozenset({"/", *(f"/console/{name}" for name in NAMES)})
"""Served without a key: there is nothing in these files but the page."""

_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The browser keeps the page to this server: no script, style or request of anyone else, nor any written into it."""


class StaticFile(NamedTuple):
    """Ready to be sent."""

    body: bytes
    headers: list[tuple[bytes, bytes]]
    etag: str


def load_page() -> dict[str, StaticFile]:
    """path -> file. Raises FileNotFoundError where the package was installed without them."""
    folder = resources.files("services.recommender.console") / "static"
    named = {f"/console/{name}": name for name in NAMES} | {"/": INDEX}
    return {path: _prepared(name, (folder / name).read_bytes()) for path, name in named.items()}


def _prepared(name: str, body: bytes) -> StaticFile:
    etag = f'"{hashlib.sha256(body).hexdigest()[:20]}"'
    headers = [
        (b"content-type", TYPES[name.rpartition(".")[2]]),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-cache"),  # asked about each time, and answered by 304: always the server's own version
        (b"etag", etag.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
        (b"content-security-policy", _POLICY),
    ]
    return StaticFile(body, headers, etag)
