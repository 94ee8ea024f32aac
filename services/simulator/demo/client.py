"""Rankings over HTTP, one kept-alive connection a client."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from shared.core.errors import Unavailable

_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Held:
    """What the system recommends to a user now; ``as_of`` in ms is the last event that it knows of."""

    items: tuple[str, ...]
    strategy: str
    model_version: str | None
    as_of: int


def path_of(user_id: str, k: int) -> str:
    """The path of a user's ranking."""
    return f"/v1/users/{quote(user_id, safe='')}/recommendations?k={k}"


class RankingClient:
    """Asks the recommender. Not for use by several threads."""

    def __init__(self, http_address: str, api_key: str = "") -> None:
        self._address = http_address
        self._headers = {"X-API-Key": api_key} if api_key else {}
        self._connection = http.client.HTTPConnection(urlsplit(http_address).netloc, timeout=_TIMEOUT_S)

    def ranking(self, user_id: str, k: int) -> Held:
        """The ranking held for a user. Raises Unavailable."""
        return parse_held(self.raw(path_of(user_id, k)))

    def raw(self, path: str) -> bytes:
        """The body of a GET, asked again once where the kept connection had ended. Raises Unavailable."""
        for last_try in (False, True):
            try:
                self._connection.request("GET", path, headers=self._headers)
                answer = self._connection.getresponse()
                body = answer.read()
            except (OSError, http.client.HTTPException) as error:
                self._connection.close()
                if last_try or isinstance(error, TimeoutError):
                    raise Unavailable(f"{self._address}{path}: {error}") from error
                continue
            if answer.status == 200:
                return body
            raise Unavailable(f"{self._address}{path}: {answer.status} {body[:200].decode('utf-8', 'replace')}")
        raise AssertionError("unreachable")

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def parse_held(body: bytes) -> Held:
    """The parts of a ranking that the demo looks at."""
    value = json.loads(body)
    items = tuple(item["item_id"] for item in value["items"])
    return Held(items, value["strategy"], value["model_version"], value["as_of"])
