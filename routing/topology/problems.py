"""Turns pydantic's errors into lines that a writer of the queue table can act on.

One form for all: ``queue 'reports': max_length must be at least 1, got 0``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

_KINDS = {"queues": "queue", "routes": "route", "limits": "limit"}


def close_to(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """Return the known name that was probably meant, None when none is close."""
    # In reverse: the first of those that differ in nothing but their case is kept.
    folded = {other.casefold(): other for other in reversed(list(known))}
    wanted = name.casefold()
    swapped = [other for other in reversed(folded) if sorted(other) == sorted(wanted)]
    found = swapped or difflib.get_close_matches(wanted, folded, 1, cutoff)
    return folded[found[0]] if found else None


def problem_lines(error: ValidationError, *, fields: Mapping[str, Sequence[str]]) -> list[str]:
    """Return a line for every problem.

    Arguments:
        error: what pydantic found.
        fields: the names of the fields by table ("queues", "routes", "" for the top), for hints.
    """
    lines: list[str] = []
    for details in error.errors(include_url=False):
        lines.extend(_lines(details, fields))
    return list(dict.fromkeys(lines))


def _lines(details: ErrorDetails, fields: Mapping[str, Sequence[str]]) -> list[str]:
    table, owner, field = _place(details["loc"])
    prefix = f"{_KINDS[table]} {owner!r}: " if owner else ""
    if details["type"] == "value_error":
        return [prefix + line for line in str(details["ctx"]["error"]).splitlines()]
    if details["type"] == "extra_forbidden":
        meant = close_to(field, fields[table if owner else ""])
        hint = (
            f"did you mean {meant!r}?"
            if meant
            else "known are " + ", ".join(fields[table if owner else ""])
        )
        return [f"{prefix}unknown field {field!r}, {hint}"]
    if details["type"] == "missing":
        return [f"{prefix}{field} is missing"]
    subject = f"{field} " if field else ""
    return [f"{prefix}{subject}{_expected(details)}, got {details['input']!r}"]


def _place(loc: tuple[int | str, ...]) -> tuple[str, str, str]:
    """Split a location into table, queue or route, and field."""
    parts = [str(part) for part in loc]
    if len(parts) > 1 and parts[0] in _KINDS:
        inner = [part for part in parts[2:] if part not in ("levels", "[key]")]
        return parts[0], parts[1], ".".join(inner)
    return "", "", ".".join(parts)


def _expected(details: ErrorDetails) -> str:
    context: dict[str, Any] = details.get("ctx", {})
    match details["type"]:
        case "greater_than_equal":
            return f"must be at least {_number(context['ge'])}"
        case "greater_than":
            return f"must be more than {_number(context['gt'])}"
        case "int_type" | "int_parsing" | "int_from_float":
            return "must be a whole number"
        case "float_type" | "float_parsing" | "finite_number":
            return "must be a number"
        case "bool_type":
            return "must be true or false"
        case "string_type":
            return "must be a string"
        case "literal_error":
            return f"must be one of {context['expected']}"
        case "model_type" | "dict_type" | "model_attributes_type" | "mapping_type":
            return "must be a table"
    return details["msg"]


def _number(value: float) -> str:
    return f"{value:g}"
