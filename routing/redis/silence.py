"""Notices that a broker has gone silent: no reply, and no error either.

A link that swallows what is sent (a NAT box that forgot it, a mesh, a frozen server) closes
nothing. Every connection of the engine therefore has a timeout, unless the app has set its own, and
what waits for a reply without reading is looked at with the clock. What made one connection fall
silent has mostly made all of them: those that have not been heard since are not used again, as each
would be waited for in turn.
"""

from __future__ import annotations

import time
from functools import cache
from typing import Any

#: A shorter timeout would take a busy server for a silent one.
LEAST_SECONDS = 5.0


def silence_seconds(lease_seconds: float) -> float:
    """Return how long to wait for a reply: long for a server, and well within a lease.

    >>> silence_seconds(60.0), silence_seconds(3.0)
    (20.0, 5.0)
    """
    return max(LEAST_SECONDS, lease_seconds / 3)


def set_timeouts(connparams: dict[str, Any], options: dict[str, Any], lease_seconds: float) -> None:
    """Give timeouts and keepalive to the parameters of a connection where the app has set none.

    Arguments:
        connparams: as kombu makes them; changed in place.
        options: the app's transport options.
        lease_seconds: the lease of the queue table.
    """
    seconds = silence_seconds(lease_seconds)
    ours: dict[str, Any] = {"socket_timeout": seconds}
    if "path" not in connparams:  # a unix socket takes no such arguments
        ours |= {"socket_connect_timeout": seconds, "socket_keepalive": True}
    for name, value in ours.items():
        if name not in options and connparams.get(name) is None:
            connparams[name] = value


#: When a connection has last heard nothing for its timeout, by its server's address.
_HEARD_NOTHING: dict[tuple[Any, ...], float] = {}


class Wary:
    """The part of a connection that knows whether it can be trusted to be answered."""

    _heard_at = 0.0

    def _connect(self) -> Any:
        self.heard()
        return super()._connect()  # type: ignore[misc]

    def heard(self) -> None:
        """Note that a reply came, on a connection that is kept for long."""
        self._heard_at = time.monotonic()

    def heard_nothing(self) -> None:
        """Note that no reply came for as long as one may take."""
        _HEARD_NOTHING[self._address] = time.monotonic()

    @property
    def is_doubtful(self) -> bool:
        """Whether another one to its server has heard nothing since this one heard something."""
        return self._heard_at < _HEARD_NOTHING.get(self._address, 0.0)

    @property
    def _address(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name, None) for name in ("host", "port", "path"))


class WaryPool:
    """The part of a pool that makes a doubtful connection anew before it gives it out."""

    def get_connection(self, *args: Any, **options: Any) -> Any:
        """Take a connection."""
        this: Any = super()
        connection = this.get_connection(*args, **options)
        if _HEARD_NOTHING and connection.is_doubtful:
            try:
                connection.disconnect()
                connection.connect()
            except BaseException:
                this.release(connection)
                raise
        return connection


@cache
def wary(pool_class: Any) -> Any:
    """Return a class of pools of wary connections."""
    return type(f"Wary{pool_class.__name__}", (WaryPool, pool_class), {})
