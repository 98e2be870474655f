"""What is wrong with a configuration, in a sentence: pydantic's errors with our keys and a fix."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pscl_hpc.config.registry import UNKNOWN_NAME, models_in, registry_of
from pscl_hpc.errors import did_you_mean

_BRANCH = re.compile(r".*\[.*|[A-Z]\w*")
"""A type of several that a value may have, as pydantic writes it among the keys of a location."""
_MUST_BE = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number, with a decimal point",
    "float_type": "a number",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
}
"""What a value must be, by the types of pydantic's errors."""


def first_problem(schema: type[BaseModel], error: ValidationError, tree: Any = None) -> str:
    """The first validation error, as the end of a sentence that names the key and the fix.

    Args:
        schema: What was validated against.
        error: What pydantic found.
        tree: The values, which tell the chosen methods; needed only to suggest their keys.
    """
    first = _nearest(error.errors())
    location = [str(part) for part in first["loc"]]
    kind = first["type"]
    # The last part of a key that does not exist may look like anything.
    last = len(location) - (kind == "extra_forbidden")
    key = ".".join(part for i, part in enumerate(location) if i >= last or not _BRANCH.fullmatch(part))
    if kind == "extra_forbidden":
        return f"unknown key '{key}'{did_you_mean(location[-1], _keys_at(schema, location[:-1], tree))}"
    if kind == "missing":
        return f"key '{key}' is missing; add it"
    if kind == UNKNOWN_NAME:
        given = first["ctx"]["given"]
        return f"key '{key}.name' is '{given}'{did_you_mean(str(given), first['ctx']['names'])}"
    if kind == "string_pattern_mismatch":
        return (
            f"key '{key}': use letters, digits and any of . _ - and begin with a letter or digit, but it is "
            f"{first['input']!r}"
        )
    if kind in ("tuple_type", "list_type"):
        return f"key '{key}': must be a list such as [a, b], but it is {first['input']!r}"
    message = str(first["msg"])
    if kind == "value_error":
        message = message.removeprefix("Value error, ")  # our own sentence
    elif kind in _MUST_BE:
        message = f"must be {_MUST_BE[kind].format(**first.get('ctx', {}))}"
    else:
        message = message[:1].lower() + message[1:]
    shown = f", but it is {first['input']!r}" if kind != "value_error" and key else ""
    if kind == "string_type" and isinstance(first["input"], bool | int | float):
        shown += "; quote it, on the command line within a second pair of quotes"
    return f"key '{key}': {message}{shown}" if key else message


def _nearest(errors: Sequence[ErrorDetails]) -> ErrorDetails:
    """The first error; for a union, the error of the member that matched furthest."""
    first = errors[0]["loc"]
    at = next((i for i, part in enumerate(first) if _BRANCH.fullmatch(str(part))), None)
    if at is None:
        return errors[0]
    return max((e for e in errors if e["loc"][:at] == first[:at]), key=lambda e: len(e["loc"]))


def _keys_at(schema: type[BaseModel], location: Sequence[str], tree: Any) -> list[str]:
    """Keys that are valid below ``location``."""
    nodes: list[type[BaseModel]] = [schema]
    for part in location:
        tree = tree.get(part) if isinstance(tree, Mapping) else None
        found: list[type[BaseModel]] = []
        for node in nodes:
            if part in node.model_fields:
                field = node.model_fields[part]
                registry = registry_of(field)
                if registry is None:
                    found += models_in(field.annotation)
                else:
                    name = tree.get("name") if isinstance(tree, Mapping) else None
                    found.append(registry.config(str(name or registry.default)))
        nodes = found or nodes
    return sorted({key for node in nodes for key in node.model_fields})
