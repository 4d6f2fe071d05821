"""When a message is due: read from its ETA, on both of its ways.

A producer says how long a message has to wait by its own clock, and the server adds that to its
own: so a countdown is right whatever the clocks of producers and workers show. A message that came
to the ready list with its ETA (from stock Celery) is due at that time by the server's clock.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from celery.utils.time import maybe_iso8601
from kombu.compression import decompress

from routing.message.codec import JSON, check_inflated, decode

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)

#: What every task message of protocol 1 has in its body.
_TASK = {"id", "task"}


@dataclass(frozen=True, slots=True)
class Delay:
    """One message on its way to the delayed ones of its queue."""

    eta: datetime
    message_id: str
    payload: str | bytes

    @property
    def wait_ms(self) -> int:
        """How long the message has to wait from now, by this machine's clock; 0 when it is due."""
        return max(0, math.ceil((self.eta - datetime.now(UTC)) / _MILLISECOND))


def take_eta(message: dict[str, Any]) -> datetime | None:
    """Return the ETA of a message that has to wait for it.

    One that has passed is taken off the message: there is nothing to wait for.
    """
    headers = message.get("headers") or {}
    eta = eta_of(headers) if headers.get("eta") else None
    if eta is None or eta > datetime.now(UTC):
        return eta
    message["headers"] = {**headers, "eta": None}
    return None


def task_fields(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the fields of a task message: its headers or, for protocol 1, its body.

    Empty for what is no task, and for a body of protocol 1 that is not JSON.
    """
    headers = message.get("headers") or {}
    if "task" in headers:
        return headers
    if message.get("content-type") != JSON:
        return {}
    try:
        body = message["body"]
        if (message.get("properties") or {}).get("body_encoding") == "base64":
            body = base64.b64decode(body)
        if compression := headers.get("compression"):
            check_inflated(body, compression)
            body = decompress(body, compression)
        fields = decode(body if isinstance(body, bytes) else body.encode())
    except Exception:  # what cannot be read is found out where it is taken in
        return {}
    return fields if isinstance(fields, dict) and fields.keys() >= _TASK else {}


def was_kept(message: Mapping[str, Any]) -> bool:
    """Return whether the broker kept a message until it was due."""
    return "due" in (message.get("celeriac") or {})


def eta_of(headers: Mapping[str, Any]) -> datetime | None:
    """Return the ETA in the fields of a task; None without one, or when it is no time."""
    try:
        eta: datetime | None = maybe_iso8601(headers.get("eta"))
    except (ValueError, TypeError, AttributeError):
        return None
    if eta is None or eta.tzinfo is not None:
        return eta
    # As Celery's worker reads it.
    return eta.replace(tzinfo=UTC)


def in_ms(eta: datetime) -> int:
    """Return a time in milliseconds since 1970, rounded up: nothing is early."""
    return math.ceil((eta - _EPOCH) / _MILLISECOND)
