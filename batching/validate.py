"""From the arguments of one message to the value of one item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from batching.errors import InvalidItem


def value_of(model: type[BaseModel] | None, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Return the item's value.

    With a model: an instance of it, from the only positional argument or from the keyword
    arguments. Without: the only argument when there is exactly one, else `(args, kwargs)`.

    Raises:
        InvalidItem: the arguments do not fit the model.
    """
    if model is None:
        return args[0] if len(args) == 1 and not kwargs else (args, kwargs)
    if len(args) + bool(kwargs) != 1:
        raise InvalidItem(
            "*",
            f"expected one argument that fits {model.__name__}, or its fields by keyword, "
            f"got {len(args)} positional and {len(kwargs)} keyword arguments",
        )
    try:
        return model.model_validate(args[0] if args else kwargs)
    except ValidationError as error:
        raise _invalid(error) from None
    except Exception as error:
        # A validator of the model's own that raises something else than a ValueError.
        raise InvalidItem("*", f"validation raised {error!r}") from error


def _invalid(error: ValidationError) -> InvalidItem:
    problems = error.errors(include_url=False, include_context=False)
    first, others = problems[0], problems[1:]
    reason = first["msg"]
    if first["type"] != "missing":
        reason = f"{reason}, got {_short(first['input'])}"
    if others:
        reason = f"{reason}; also {', '.join(_name(other['loc']) for other in others)}"
    return InvalidItem(_name(first["loc"]), reason)


def _name(location: Sequence[int | str]) -> str:
    return ".".join(str(part) for part in location) or "*"


def _short(value: object, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}..."
