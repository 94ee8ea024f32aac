"""The documents of deploy/contracts, made from the code: ``python -m tests.contract_documents`` writes them.

openapi.json is what a recommender serves; asyncapi.json tells of the topics; schemas/ has each message by itself. Types
and limits come from the structs that the services encode and decode with.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import msgspec

from shared.core.engagement import EngagementBatch
from shared.core.events import Interaction
from shared.core.ranking import Ranking
from tests.asyncapi_document import DEAD_LETTER_HEADERS, asyncapi
from tests.servers import ROOT
from tests.unit.recommender_twins import Twin

FOLDER = ROOT / "deploy" / "contracts"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
MESSAGES: dict[str, Any] = {"interaction": Interaction, "recommendation": Ranking, "engagement": EngagementBatch}


def components(template: str) -> dict[str, Any]:
    """Name -> schema of every type that stands in a message."""
    _, found = msgspec.json.schema_components(list(MESSAGES.values()), ref_template=template)
    return {name: _readable(schema) for name, schema in found.items()}


def schema(name: str) -> dict[str, Any]:
    """The JSON Schema of one message, whole in itself."""
    if name == "dead-letter-headers":
        body = DEAD_LETTER_HEADERS
    else:
        made = msgspec.json.schema(MESSAGES[name])
        root = made["$ref"].rpartition("/")[2]
        parts = {key: _readable(part) for key, part in made["$defs"].items()}
        body = parts.pop(root) | ({"$defs": parts} if parts else {})
    return {"$schema": DIALECT, "$id": f"urn:driftwood:{name}", **body}


def openapi() -> dict[str, Any]:
    """As served where no API key is needed."""
    twin = Twin(model=False)
    try:
        served = twin.call("GET", "/openapi.json").json()
    finally:
        twin.stop()
    return served


def documents() -> dict[Path, str]:
    """Path -> content of every file."""
    made = {"openapi.json": openapi(), "asyncapi.json": asyncapi(components("#/components/schemas/{name}"))}
    made |= {f"schemas/{name}.schema.json": schema(name) for name in (*MESSAGES, "dead-letter-headers")}
    return {FOLDER / name: json.dumps(content, indent=2, ensure_ascii=False) + "\n" for name, content in made.items()}


def _readable(part: Any) -> Any:
    """Docstrings as prose: without their indentation and double backticks."""
    if isinstance(part, dict):
        return {key: _prose(value) if key == "description" else _readable(value) for key, value in part.items()}
    return [_readable(value) for value in part] if isinstance(part, list) else part


def _prose(text: str) -> str:
    return inspect.cleandoc(text).replace("``", "`")


if __name__ == "__main__":
    for path, content in documents().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        print(path.relative_to(ROOT))
