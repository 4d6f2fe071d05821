"""Models over the wire and back: what was sent is what arrives, or it is refused before it is sent.

A model travels as plain values under the names of its fields. What its schema shows to have no way
back refuses the definition of the task; what only a value shows refuses the call that sends it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, get_args

from pydantic import BaseModel, Secret, SecretBytes, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import to_json

from batching.errors import InvalidItem

_SECRETS = (Secret, SecretStr, SecretBytes)


def unsendable(model: type[BaseModel]) -> str | None:
    """Return why a model cannot be sent, as far as its schema shows; None when it can."""
    for path, field in _fields(model, ()):
        if field.exclude:
            return f"field {path!r} of {model.__name__} is left out of what is sent (exclude=True)"
        if any(isinstance(part, type) and issubclass(part, _SECRETS) for part in _parts(field)):
            return f"field {path!r} of {model.__name__} is a secret, which is sent as asterisks"
    return None


def read(model: type[BaseModel], raw: Any) -> BaseModel:
    """Return the model that raw values make, under the names of its fields or their aliases.

    Raises:
        pydantic.ValidationError: they do not fit.
    """
    if not isinstance(raw, BaseModel) and _is_strict(model):
        # A strict field takes from JSON what JSON has no type for, such as a date.
        return model.model_validate_json(to_json(raw), by_alias=True, by_name=True)
    return model.model_validate(raw, by_alias=True, by_name=True)


def plain(value: BaseModel, model: type[BaseModel] | None) -> Any:
    """Return what is sent in the place of a model.

    Arguments:
        value: the model.
        model: what it is read as; None where the task gets the plain values.

    Raises:
        InvalidItem: it would not arrive as it is, naming the first field that does not.
    """
    try:
        raw = value.model_dump(mode="json", round_trip=True, warnings=False)
    except Exception as error:
        name = next((name for name in type(value).model_fields if not _dumps(value, name)), "*")
        got = getattr(value, name, value)
        raise InvalidItem(name, f"it cannot be sent as JSON: {error}, got {got!r}") from None
    if model is None:
        return raw
    try:
        back = read(model, raw)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False)[0]
        name = ".".join(map(str, problem["loc"])) or "*"
        reason = f"it cannot be read from what is sent: {problem['msg']}"
        raise InvalidItem(name, f"{reason}, got {_at(value, problem['loc'])!r}") from None
    if (path := _difference(value, back)) is not None:
        got, arrives = _at(value, path), _at(back, path)
        raise InvalidItem(
            ".".join(map(str, path)) or "*",
            f"it would not arrive as it is: {got!r} ({type(got).__name__}) would be "
            f"{arrives!r} ({type(arrives).__name__})",
        )
    return raw


def _dumps(value: BaseModel, name: str) -> bool:
    try:
        value.model_dump(mode="json", round_trip=True, warnings=False, include={name})
    except Exception:
        return False
    return True


def _difference(sent: Any, back: Any) -> tuple[int | str, ...] | None:
    """Return the way to the first value that differs, or is of another type; None for none."""
    if type(sent) is not type(back):
        return ()
    if isinstance(sent, BaseModel):
        return _first_of(_values(sent), _values(back))
    if isinstance(sent, Mapping):
        return _first_of(sent, back)
    if isinstance(sent, list | tuple):
        if len(sent) != len(back):
            return ()
        return _first_of(dict(enumerate(sent)), dict(enumerate(back)))
    return None if sent == back else ()


def _values(model: BaseModel) -> dict[str, Any]:
    """Return the fields of a model, and what it has besides."""
    fields = {name: getattr(model, name) for name in type(model).model_fields}
    return {**fields, **(model.model_extra or {})}


def _first_of(sent: Mapping[Any, Any], back: Mapping[Any, Any]) -> tuple[int | str, ...] | None:
    if sent.keys() != back.keys():
        return ()
    for name, value in sent.items():
        if (path := _difference(value, back[name])) is not None:
            return (name, *path)
    return None


def _at(value: Any, path: Sequence[int | str]) -> Any:
    for name in path:
        try:
            value = getattr(value, str(name)) if isinstance(value, BaseModel) else value[name]
        except (AttributeError, LookupError, TypeError):
            return value
    return value


@cache
def _is_strict(model: type[BaseModel]) -> bool:
    """Return whether any field of a model, or of those in it, takes its own type only."""
    fields = [field for _, field in _fields(model, ())]
    models = {part for field in fields for part in _parts(field)} | {model}
    return any(getattr(one, "strict", None) for field in fields for one in field.metadata) or any(
        isinstance(one, type) and issubclass(one, BaseModel) and one.model_config.get("strict")
        for one in models
    )


def _fields(
    model: type[BaseModel], seen: tuple[type[BaseModel], ...], prefix: str = ""
) -> Iterator[tuple[str, FieldInfo]]:
    """Yield every field of a model and of those in it, with its dotted name."""
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}", field
        for part in _parts(field):
            if (
                isinstance(part, type)
                and issubclass(part, BaseModel)
                and part not in (*seen, model)
            ):
                yield from _fields(part, (*seen, model), f"{prefix}{name}.")


def _parts(field: FieldInfo) -> Iterator[Any]:
    """Yield the types that a field's annotation is made of."""
    left = [field.annotation]
    while left:
        part = left.pop()
        yield part
        left += get_args(part)
