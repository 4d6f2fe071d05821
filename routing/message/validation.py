"""Whether a task message is one that Celery's code can work with.

Anybody who reaches the broker can send a message, and Celery trusts what it finds in one: a time
limit that is a string, or an id that is a list, fails deep in the pool's machinery, outside of
every ``try``, and ends the worker or comes back for ever. So the types are checked once, before a
request is made. The values are the task's business.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from types import NoneType
from typing import Any, TypeAlias

from celery.exceptions import InvalidTaskError

Types: TypeAlias = tuple[type, ...]

#: Header -> the types that it may have, besides being absent or null.
_TYPES: dict[str, Types] = {
    "root_id": (str,),
    "parent_id": (str,),
    "group": (str,),
    "shadow": (str,),
    "argsrepr": (str,),
    "kwargsrepr": (str,),
    "origin": (str,),
    "eta": (str,),
    "expires": (str,),
    "retries": (int,),
    "group_index": (int,),
    "replaced_task_nesting": (int,),
    "ignore_result": (bool, int),
    "stamps": (dict,),
    "timelimit": (list, tuple),
    "stamped_headers": (list, tuple),
}

#: The same for the body's last part. Without a value there, Celery takes a header of that name.
_EMBEDDED: dict[str, Types] = {
    "callbacks": (list, tuple),
    "errbacks": (list, tuple),
    "chain": (list, tuple),
    "chord": (dict,),
}

_HEADERS = _TYPES | _EMBEDDED

#: Headers that become part of a key in a broker or a result backend.
_NAMES = frozenset(("id", "task", "root_id", "parent_id", "group"))
_NESTING = frozenset((list, tuple, dict))

#: Seconds. More overflows the clock of some pool.
LONGEST_TIME_LIMIT = 10**9

#: Levels of lists and objects in a header. Python gives up at about a thousand when it pickles, and
#: then all items of a batch, which travel together, would pay for one.
DEEPEST = 100


def check_message(headers: Mapping[str, Any], content: Any, content_encoding: Any) -> None:
    """Refuse a message whose fields are of wrong types.

    Arguments:
        headers: its headers, or for protocol 1 its decoded body.
        content: its decoded body: (args, kwargs, embed).
        content_encoding: how its body was encoded.

    Raises:
        InvalidTaskError: the message says which field, what was expected and what was got.
    """
    _check_required(headers)
    _check_fields(headers, _HEADERS, levels=DEEPEST)
    _check_content(content)
    if content_encoding is not None and type(content_encoding) is not str:
        raise _unfit("content-encoding", "a string", content_encoding)


def _check_required(headers: Mapping[str, Any]) -> None:
    for name in ("id", "task"):
        value = headers[name]
        if not isinstance(value, str) or not value:
            raise _unfit(name, "a string", value)


def is_writable(value: str) -> bool:
    """Return whether a string can be part of a key: one with half a surrogate pair cannot.

    >>> is_writable("caf\\xe9"), is_writable("caf\\udce9")
    (True, False)
    """
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_fields(
    fields: Mapping[str, Any], known: Mapping[str, Types], *, levels: int | None = None
) -> None:
    # For every message: what is right is passed over in as few steps as can be.
    for name, value in fields.items():
        if value is None:
            continue
        kind = type(value)
        types = known.get(name)
        # The very type, as true is a whole number too; then subclasses, which other codecs make.
        if (
            types is not None
            and kind not in types
            and (kind is bool or not isinstance(value, types))
        ):
            raise _unfit(name, _WORDS.get(types[0], "a list"), value)
        if kind is str:
            if name in _NAMES and not value.isascii():
                _check_name(name, value)
            continue
        if not value:
            continue
        if levels is not None and kind in _NESTING and _nests_deeper((value,), levels):
            raise InvalidTaskError(f"headers must not be nested deeper than {levels} levels")
        if name in _CHECKS:
            _CHECKS[name](name, value)


def _nests_deeper(values: Iterable[Any], levels: int) -> bool:
    for value in values:
        kind = type(value)
        if kind in _NESTING and value:
            inner = value.values() if kind is dict else value
            if not levels or _nests_deeper(inner, levels - 1):
                return True
    return False


def _check_content(content: Any) -> None:
    if not isinstance(content, (list, tuple)) or len(content) != 3:
        raise _unfit("body", "[args, kwargs, embed]", content)
    args, kwargs, embed = content
    if not isinstance(args, (list, tuple)):
        raise _unfit("args", "a list", args)
    if not isinstance(kwargs, Mapping):
        raise _unfit("kwargs", "an object", kwargs)
    if not isinstance(embed, (Mapping, NoneType)):
        raise _unfit("embed", "an object or null", embed)
    if embed:
        _check_fields(embed, _EMBEDDED)


def _check_time_limits(name: str, limits: Any) -> None:
    if len(limits) != 2:
        raise _unfit(name, "two numbers", limits)
    for limit in limits:
        if limit is None:
            continue
        is_number = isinstance(limit, (int, float)) and not isinstance(limit, bool)
        if not is_number or not math.isfinite(limit) or not 0 <= limit <= LONGEST_TIME_LIMIT:
            raise _unfit(name, f"seconds, at most {LONGEST_TIME_LIMIT:g}, or null", limit)


def _check_name(name: str, value: Any) -> None:
    if isinstance(value, str) and not is_writable(value):
        raise InvalidTaskError(f"{name} must be a string that can be written as UTF-8")


def _check_strings(name: str, values: Any) -> None:
    for value in values:
        if not isinstance(value, str):
            raise _unfit(name, "strings", value)


def _check_signatures(name: str, values: Any) -> None:
    for value in values:
        _check_signature(name, value)


def _check_callbacks(name: str, values: Any) -> None:
    for value in values:
        if not isinstance(value, str):  # as Celery takes them, by the task's name alone
            _check_signature(name, value)


def _check_signature(name: str, value: Any) -> None:
    if not isinstance(value, Mapping) or not isinstance(value.get("task"), str):
        raise _unfit(name, "signatures", value)


_CHECKS: dict[str, Callable[[str, Any], None]] = {
    **dict.fromkeys(_NAMES, _check_name),
    "timelimit": _check_time_limits,
    "stamped_headers": _check_strings,
    "callbacks": _check_callbacks,
    "errbacks": _check_callbacks,
    "chain": _check_signatures,
    "chord": _check_signature,
}

_WORDS = {str: "a string", int: "a whole number", bool: "true or false", dict: "an object"}


def _unfit(name: str, expected: str, value: Any) -> InvalidTaskError:
    # The type alone: the value may be huge, or nested too deep to be shown.
    return InvalidTaskError(f"{name} must be {expected}, got a {type(value).__name__}")
