"""What options of the commands are given: moments, and JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeAlias

import click

#: Takes the server's clock and returns a moment, both in milliseconds.
Moment: TypeAlias = Callable[[int], int]

_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 7 * 86_400}


def when(text: str) -> Moment:
    """Return the moment that a text names: ``2h`` or ``3d`` ago, or an ISO 8601 date and time.

    Without a zone it is local.

    >>> when("90s")(100_000)
    10000
    """
    if found := re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text.strip()):
        span_ms = int(float(found[1]) * _SECONDS[found[2]] * 1000)
        return lambda now_ms: now_ms - span_ms
    try:
        at_ms = int(datetime.fromisoformat(text).timestamp() * 1000)
    except ValueError:
        raise click.BadParameter(
            f"expected a span such as 2h, or a time as 2026-01-31T12:00, got {text!r}"
        ) from None
    return lambda _: at_ms


def json_list(text: str) -> list[Any]:
    """Return the JSON list in a text."""
    value = _json(text)
    if not isinstance(value, list):
        raise click.BadParameter(f"expected a JSON list, got {text}")
    return value


def json_object(text: str) -> dict[str, Any]:
    """Return the JSON object in a text."""
    value = _json(text)
    if not isinstance(value, dict):
        raise click.BadParameter(f"expected a JSON object, got {text}")
    return value


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"{text[:200]!r} is not JSON: {error}") from None
