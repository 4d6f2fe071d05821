"""What travels to the pool process: one compact parcel per item.

A parcel is a plain tuple of the message's headers without their empty fields, its delivery
information and its body as it came, because pickling is a good part of what a small item costs.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple, TypeAlias

from celery.app.task import Context

from routing.message.codec import loads

# Keys of a task message that are Celery's and not the sender's, as Context._get_custom_headers
# has it.
_CELERY_KEYS = frozenset({*vars(Context), "lang", "task", "argsrepr", "kwargsrepr", "compression"})

_EMBEDDED = ("callbacks", "errbacks", "chain", "chord")

# Bytes, or for protocol 1 what they decode to.
Body: TypeAlias = Any


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
