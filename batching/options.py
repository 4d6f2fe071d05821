"""The options of batch tasks: what each may be, and what was meant where one is misspelt."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import FunctionType
from typing import Any

from celery import Task
from celery.utils.time import rate
from pydantic import BaseModel

from batching.errors import InvalidOption
from batching.models import unsendable
from routing.topology.problems import close_to

#: What may become of the items of a call that fails without naming any.
ON_ERROR = ("bisect", "each", "retry")


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


def check_together(task: str, cls: Any) -> None:
    """Refuse options that contradict each other, or mean nothing without another.

    Arguments:
        task: the task's name.
        cls: its class, which has all options.

    Raises:
        InvalidOption: naming one of them, and what it would need.
    """
    for name in ("key", "cost"):
        _check_field(task, cls.model, name, getattr(cls, name))
    if cls.min_size > cls.max_size:
        raise InvalidOption(
            task, "min_size", f"must be at most max_size ({cls.max_size}), got {cls.min_size}"
        )
    if (cls.cost is None) != (cls.max_cost is None):
        name, other = ("cost", "max_cost") if cls.max_cost is None else ("max_cost", "cost")
        raise InvalidOption(task, name, f"means nothing without {other}")
    if cls.max_open_keys is not None and cls.key is None:
        raise InvalidOption(task, "max_open_keys", "means nothing without key")


def _check_field(task: str, model: type[BaseModel] | None, option: str, field: object) -> None:
    """Refuse the name of a field that the model does not have."""
    if model is None or not isinstance(field, str) or field in model.model_fields:
        return
    meant = close_to(field, model.model_fields)
    known = f"did you mean {meant!r}" if meant else f"it has {', '.join(model.model_fields)}"
    raise InvalidOption(task, option, f"{field!r} is no field of {model.__name__}, {known}")


def check_names(cls: type, task: str) -> None:
    """Refuse names that no class of the task has and that are nearly an option's.

    Celery makes attributes of all options, so one that is misspelt would be taken silently.

    Raises:
        InvalidOption: naming the option that was probably meant.
    """
    own = vars(cls)
    known = {*_CHECKS, *_CELERY_OPTIONS}
    for name, value in own.items():
        is_method = isinstance(value, FunctionType) and "_decorated" not in own
        if (
            not name[0].isalpha()
            or is_method
            or any(name in vars(base) for base in cls.__mro__[1:])
        ):
            continue
        meant = _ELSEWHERE.get(name) or close_to(name, known - {name}, cutoff=0.85)
        if meant is not None and name not in known:
            raise InvalidOption(
                task, name, f"is no option, did you mean {meant!r}? An attribute needs another name"
            )


#: What the options are called in celery-batches.
_ELSEWHERE = {"flush_every": "max_size", "flush_interval": "max_wait"}

#: Options of tasks that Celery's own class does not have.
_AUTORETRY = (
    "autoretry_for",
    "dont_autoretry_for",
    "retry_kwargs",
    "retry_backoff",
    "retry_backoff_max",
    "retry_jitter",
)
_CELERY_OPTIONS = frozenset(
    {*_AUTORETRY, *(k for k, v in vars(Task).items() if k[0].isalpha() and not callable(v))}
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
    is_name = isinstance(value, str) and value != ""
    if value is None or is_name or callable(value) or isinstance(value, staticmethod):
        return None
    return "must be the name of a field, a function, or None"


def _keys(value: object) -> str | None:
    if value is None or _is_positive_int(value):
        return None
    return "must be a whole number of keys, at least 1, or None"


def _cost(value: object) -> str | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is None or (is_number and 0 < value < math.inf):  # type: ignore[operator]
        return None
    return "must be a number above 0, or None"


def _flag(value: object) -> str | None:
    return None if isinstance(value, bool) else "must be True or False"


def _of_calls(value: object) -> str | None:
    return "is an option of a call, task.apply_async(..., batch=False), and not of a task"


def _rate(value: Any) -> str | None:
    try:
        rate(value)
    except (TypeError, ValueError):
        return "must be calls in a time, such as '10/m' or 5 for each second, or None"
    return None


def _model(value: object) -> str | None:
    if value is None:
        return None
    if isinstance(value, type) and issubclass(value, BaseModel):
        return unsendable(value)
    return "must be a pydantic model class, or None"


def _on_error(value: object) -> str | None:
    return None if value in ON_ERROR else f"must be one of {', '.join(map(repr, ON_ERROR))}"


def _is_positive_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


_CHECKS: dict[str, Callable[[object], str | None]] = {
    "max_size": _size,
    "max_bytes": _bytes,
    "max_wait": _wait,
    "min_size": _size,
    "max_cost": _cost,
    "max_open_keys": _keys,
    "spread": _flag,
    "batch": _of_calls,
    "rate_limit": _rate,
    "key": _key,
    "cost": _key,
    "model": _model,
    "on_error": _on_error,
}
