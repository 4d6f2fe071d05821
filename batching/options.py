"""The options of a batch task, checked when the task is defined."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

from batching.consumer.policy import Limits
from batching.errors import InvalidOption


def check(task: str, options: dict[str, Any]) -> None:
    """Check those options that are given.

    Raises:
        InvalidOption: naming the task, the option, what was expected and what was got.
    """
    for name, problem in _CHECKS.items():
        if name in options:
            found = problem(options[name])
            if found:
                raise InvalidOption(task, name, f"{found}, got {options[name]!r}")


def limits_of(task: Any) -> Limits:
    """Return the bounds of a task's batches."""
    return Limits(
        max_size=task.max_size, max_bytes=task.max_bytes, max_wait_seconds=float(task.max_wait)
    )


def _size(value: object) -> str | None:
    return None if _is_positive_int(value) else "must be a whole number of items, at least 1"


def _bytes(value: object) -> str | None:
    if value is None or _is_positive_int(value):
        return None
    return "must be a whole number of bytes, at least 1, or None"


def _wait(value: object) -> str | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and 0 <= value < math.inf:  # type: ignore[operator]
        return None
    return "must be a number of seconds, at least 0"


def _key(value: object) -> str | None:
    if value is None or callable(value) or isinstance(value, staticmethod):
        return None
    return "must be a function of the task's arguments, or None"


def _model(value: object) -> str | None:
    if value is None or (isinstance(value, type) and issubclass(value, BaseModel)):
        return None
    return "must be a pydantic model class, or None"


def _is_positive_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


_CHECKS: dict[str, Callable[[object], str | None]] = {
    "max_size": _size,
    "max_bytes": _bytes,
    "max_wait": _wait,
    "key": _key,
    "model": _model,
}
