"""One item on its way: what may be sent, what travels to the pool process, what arrives there.

Each step is the inverse of the one before: models are dumped into arguments, a request is packed
into a parcel; the parcel is unpacked, and the arguments are read into a value. A parcel is a plain
tuple of the message's headers without their empty fields, its delivery information and its body as
it came, because pickling is a good part of what a small item costs.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple, TypeAlias

from celery.app.task import Context
from celery.exceptions import SoftTimeLimitExceeded
from pydantic import BaseModel, ValidationError

from batching.errors import InvalidItem
from batching.models import plain, read
from routing.message.codec import loads
from routing.publish.decision import ALONE

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


def dump_models(model: type[BaseModel] | None, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Turn models among the arguments into what JSON can carry.

    Arguments:
        model: what the task reads an item as.

    Raises:
        InvalidItem: one would not arrive as it is.
    """
    if args:
        args = tuple(_dumped(model, value) for value in args)
    if kwargs:  # fields of the item, where the task has a model
        kwargs = {name: _dumped(None, value) for name, value in kwargs.items()}
    return args, kwargs


def _dumped(model: type[BaseModel] | None, value: Any) -> Any:
    return plain(value, model) if isinstance(value, BaseModel) else value


#: One item on its way to the pool process; a named tuple would take much longer to be pickled.
Parcel: TypeAlias = tuple[
    dict[str, Any],  # headers
    Body,
    str | None,  # content type; None for a body that is decoded already (protocol 1)
    str | None,  # content encoding
    str | None,  # why it has no key, or no cost, and so cannot run
    bytes | None,  # what it was given before its process was lost, pickled: it is settled only
    float | None,  # seconds since it was pushed, where the broker says that
]


class CallInfo(NamedTuple):
    """What a call is told of itself."""

    id: str = ""
    queue: str = ""
    #: Why it is made now.
    reason: str = "direct"
    #: How long it may take; None for any time.
    limit_seconds: float | None = None


#: A parcel, decoded: the request that Celery's tracer is given for the item, its positional and
#: keyword arguments, and the sender's own headers.
Opened: TypeAlias = tuple[dict[str, Any], Any, Any, dict[str, Any]]


def pack(request: Any, outcome: bytes | None = None, age_seconds: float | None = None) -> Parcel:
    """Pack a worker request.

    Arguments:
        request: the request.
        outcome: what it has already been given, pickled.
        age_seconds: how long ago it was pushed.
    """
    headers = {
        key: value
        for key, value in request.request_dict.items()
        if value is not None and key not in _DROPPED
    }
    return (
        headers,
        request.body,
        request.content_type,
        request.content_encoding,
        request.unmeasured,
        outcome,
        age_seconds,
    )


# Arguments travel in the body; the properties hold nothing that is not also elsewhere.
_DROPPED = frozenset({"args", "kwargs", "properties", "hostname"})


def unpack(parcel: Parcel, *, hostname: str, accept: Collection[str] | None) -> Opened:
    """Decode a parcel into a request as Celery's own `trace_task_ret` builds it.

    Raises:
        kombu.exceptions.DecodeError: the body cannot be decoded. The parent decoded it before, so
            this is a serializer that the pool process does not have.
    """
    request, body, content_type, content_encoding, *_ = parcel
    args, kwargs, embed = (
        loads(body, content_type, content_encoding, accept) if content_type is not None else body
    )
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
    return request, args, kwargs, of_sender(own)


def of_sender(headers: dict[str, Any]) -> dict[str, Any]:
    """Return the headers that were given as such: an option is sent among them, for retries."""
    if headers.get(ALONE) is not False:
        return headers
    return {key: value for key, value in headers.items() if key != ALONE}


def value_of(model: type[BaseModel] | None, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Return the item's value.

    With a model: an instance of it, from the only positional argument or from the keyword
    arguments. Without: the only argument when there is exactly one, else `(args, kwargs)`.

    Raises:
        InvalidItem: the arguments do not fit the model.
        SoftTimeLimitExceeded: a validator took too long.
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
        return read(model, args[0] if args else kwargs)
    except ValidationError as error:
        raise _invalid(error) from None
    except SoftTimeLimitExceeded:
        raise  # it is the call's, wherever it strikes
    except Exception as error:
        # A validator of the model's own that raises something else than a ValueError.
        raise InvalidItem("*", f"validation raised {error!r}") from error


def key_of(task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Hashable:
    """Return what an item has in common with the others of its call; None without a `key`.

    Raises:
        InvalidItem: the arguments do not fit the model.
        Exception: what the key function raises, or that its result cannot be a key.
    """
    if task.key is None:
        return None
    found = _measured(task.model, task.key, args, kwargs, may_be_raw=True)
    hash(found)
    return found  # type: ignore[no-any-return]


def cost_of(task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> float:
    """Return what an item adds to its call's `max_cost`; 0 without a `cost`.

    Raises:
        InvalidItem: the arguments do not fit the model.
        TypeError: it is no number, or below 0.
        Exception: what the cost function raises.
    """
    if task.cost is None:
        return 0.0
    found = _measured(task.model, task.cost, args, kwargs, may_be_raw=False)
    is_number = isinstance(found, Real) and not isinstance(found, bool)
    if not is_number or not 0 <= float(found) < math.inf:
        raise TypeError(f"a cost must be a number, at least 0, got {_short(found)}")
    return float(found)


def _measured(
    model: type[BaseModel] | None,
    measure: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    may_be_raw: bool,
) -> Any:
    """Return what a field or a function says of an item; a raw field is as it was sent."""
    if isinstance(measure, str):
        if model is not None and not may_be_raw:
            return getattr(value_of(model, args, kwargs), measure)
        return _field(model, measure, args, kwargs)
    return measure(*args, **kwargs) if model is None else measure(value_of(model, args, kwargs))


#: What a field may hold that is compared as it was sent.
_AS_SENT = (str, int)


def _field(
    model: type[BaseModel] | None, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """Return a field of an item, without reading all of it where that is not needed."""
    source = args[0] if args else kwargs
    if model is None:
        return source[name] if isinstance(source, Mapping) else getattr(source, name)
    if isinstance(source, Mapping):
        if isinstance(raw := source.get(name), _AS_SENT):
            return raw
        alias = model.model_fields[name].validation_alias
        if isinstance(alias, str) and isinstance(raw := source.get(alias), _AS_SENT):
            return raw
    return getattr(value_of(model, args, kwargs), name)


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
