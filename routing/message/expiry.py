"""When a message expires, by the server's clock.

Celery writes a time of the producer's clock into the message, whatever the producer said; and, as
the property ``expiration``, how long that is from then on. With the time at which the server took
the message, the second is exact whatever the clocks of producers and workers show.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

#: A producer's time that differs by less is kept as it is: a message takes some time to the server.
SAME_SECONDS = 1.0


def by_server(
    expires: datetime, *, eta: datetime | None, retries: Any, properties: Any, noted: Any
) -> datetime:
    """Return when a message expires by the server's clock, as far as that can be known.

    Of a retry it cannot: its time is its first message's, which was put right by then. Nor of what
    a stock producer has sent, which the server has not stamped. Their times are taken as they are.

    Arguments:
        expires: what the message says.
        eta: the ETA that it says, by the same clock.
        retries: how often it was retried.
        properties: its properties.
        noted: what the engine has noted on it: when the server took it (`at`), or made it ready
            after its delay (`due`).
    """
    if retries or not isinstance(noted, Mapping) or not isinstance(properties, Mapping):
        return expires
    try:
        if (due := noted.get("due")) is not None:
            # Both times are the producer's, and one of them is known by the server's clock.
            right = expires if eta is None else expires + (_time(due) - eta)
        else:
            wait = timedelta(milliseconds=float(properties["expiration"]))
            right = _time(noted["at"]) + wait
    except (LookupError, TypeError, ValueError, ArithmeticError, OSError):
        return expires
    return expires if abs((right - expires).total_seconds()) < SAME_SECONDS else right


def _time(server_ms: Any) -> datetime:
    return datetime.fromtimestamp(server_ms / 1000, UTC)
