"""One item on its way: what may be sent, what travels to the pool process, what arrives there.

Each step is the inverse of the one before: models are dumped into arguments, a request is packed
into a parcel; the parcel is unpacked, and the arguments are read into a value. A parcel is a plain
tuple of the message's headers without their empty fields, its delivery information and its body as
it came, because pickling is a good part of what a small item costs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from celery.app.task import Context
from pydantic import BaseModel, ValidationError

from batching.errors import InvalidItem
from routing.message.codec import loads

# Keys of a task message that are Celery's and not the sender's, as Context._get_custom_headers
# has it.
_CELERY_KEYS = frozenset({*vars(Context), "lang", "task", "argsrepr", "kwargsrepr", "compression"})

_EMBEDDED = ("callbacks", "errbacks", "chain", "chord")

# Bytes, or for protocol 1 what they decode to.
Body: TypeAlias = Any


def one_item(*args: Any, **fields: Any) -> None:
    """What a task with a model is sent with: one argument, or the model's fields by keyword."""
    if len(args) + bool(fields) != 1:
        raise TypeError(
            "a batch task with a model takes one item: one positional argument or its fields by "
            f"keyword, got {len(args)} positional and {len(fields)} keyword arguments"
        )


def any_arguments(*args: Any, **kwargs: Any) -> None:
    """What a task without a model is sent with: anything."""


def dump_models(args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Turn models among the arguments into what JSON can carry."""
    if args:
        args = tuple(_dumped(value) for value in args)
    if kwargs:
        kwargs = {name: _dumped(value) for name, value in kwargs.items()}
    return args, kwargs


def _dumped(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


class Parcel(NamedTuple):
    """One item on its way to the pool process."""

    headers: dict[str, Any]
    body: Body
    # None for a body that is decoded already (protocol 1).
    content_type: str | None
    content_encoding: str | None
    # Set when the parent found out that the item cannot run: why.
    invalid: str | None


class Opened(NamedTuple):
    """A parcel, decoded: what Celery's tracer is given for the item."""

    request: dict[str, Any]
    args: Any
    kwargs: Any
    # The sender's own headers.
    headers: dict[str, Any]


def pack(request: Any, invalid: str | None = None) -> Parcel:
    """Pack a worker request."""
    headers = {
        key: value
        for key, value in request.request_dict.items()
        if value is not None and key not in _DROPPED
    }
    return Parcel(headers, request.body, request.content_type, request.content_encoding, invalid)


# Arguments travel in the body; the properties hold nothing that is not also elsewhere.
_DROPPED = frozenset({"args", "kwargs", "properties", "hostname"})


def unpack(parcel: Parcel, *, hostname: str, accept: Collection[str] | None) -> Opened:
    """Decode a parcel into a request as Celery's own `trace_task_ret` builds it.

    Raises:
        kombu.exceptions.DecodeError: the body cannot be decoded. The parent decoded it before, so
            this is a serializer that the pool process does not have.
    """
    args, kwargs, embed = (
        loads(parcel.body, parcel.content_type, parcel.content_encoding, accept)
        if parcel.content_type is not None
        else parcel.body
    )
    request = parcel.headers
    own = {key: request[key] for key in request.keys() - _CELERY_KEYS}
    request["args"] = args
    request["kwargs"] = kwargs
    request["hostname"] = hostname
    request["is_eager"] = False
    if embed:
        # No more than Celery puts there: anything else would take the place of what is known here.
        request.update((key, embed[key]) for key in _EMBEDDED if key in embed)
    # Given here, Context does not search for them in every request.
    request["headers"] = own
    return Opened(request, args, kwargs, own)


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
        names = [repr(_name(other["loc"])) for other in others]
        reason = f"{reason}; also field{'s' if len(names) > 1 else ''} {', '.join(names)}"
    return InvalidItem(_name(first["loc"]), reason)


def _name(location: Sequence[int | str]) -> str:
    return ".".join(str(part) for part in location) or "*"


def _short(value: object, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}..."
