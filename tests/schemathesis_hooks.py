"""What JSON Schema cannot say, left out of what schemathesis takes for valid: SCHEMATHESIS_HOOKS names this module.

Ids are limited in bytes of UTF-8 and schemas count characters; 1.0 is an integer to a schema and a float to us.
"""

from __future__ import annotations

from typing import Any

import schemathesis

from shared.core.events import MAX_ID_BYTES


def sayable(value: Any) -> bool:
    """Whether a schema can say what we think of the value."""
    if isinstance(value, str):
        size = len(value.encode("utf-8", "surrogatepass"))
        return size <= MAX_ID_BYTES or len(value) > MAX_ID_BYTES
    if isinstance(value, float):
        return not value.is_integer()
    if isinstance(value, dict):
        return all(sayable(part) for part in value.values())
    if isinstance(value, list):
        return all(sayable(part) for part in value)
    return True


@schemathesis.hook
def filter_body(context: schemathesis.HookContext, body: Any) -> bool:
    return sayable(body)


@schemathesis.hook
def filter_path_parameters(context: schemathesis.HookContext, path_parameters: Any) -> bool:
    return sayable(path_parameters)
