"""Transports of the engine: kombu's Redis transports, with delivery through the inbox.

The schemes of `routing.transport.schemes` lead here.
"""

from __future__ import annotations

import logging
import math
import ssl
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from kombu.transport import redis as stock

from routing.transport.channel import EngineChannel, EngineSentinelChannel
from routing.transport.inbox import Nudge

logger = logging.getLogger(__name__)


#: Seconds between two looks for a reply that is overdue.
WATCH_SECONDS = 1.0

#: A worker without kombu's event loop learns between two polls that it was told to stop.
TURN_SECONDS = 0.2


class TransportMixin:
    """Delivers what channels fetched: from the event loop in slices, else from ``drain_events``."""

    #: kombu's event loop once a worker runs on it; None for gevent and for plain clients.
    hub: Any = None
    #: Says whether the worker that consumes here was told to stop.
    is_stopping: Callable[[], bool] = staticmethod(lambda: False)
    _nudge: Nudge | None = None
    _tick: Callable[[], None] | None = None
    _is_ticking = False
    _watch: Any = None
    channels: list[Any]
    cycle: Any

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Let the event loop drive fetching and delivery."""
        before = frozenset(loop.on_tick)
        super().register_with_event_loop(connection, loop)  # type: ignore[misc]
        ours = frozenset(loop.on_tick) - before
        self._tick = partial(self._run_tick, ours)
        loop.on_tick.difference_update(ours)
        loop.on_tick.add(self._tick)
        self.hub = loop
        self._nudge = Nudge()
        loop.add_reader(self._nudge.fileno(), self._deliver_slices)
        self._watch = loop.call_repeatedly(WATCH_SECONDS, self._check_silence)

    def _check_silence(self) -> None:
        for channel in list(self.channels):
            if "courier" in channel.__dict__:
                channel.courier.check_silence()

    def _run_tick(self, callbacks: frozenset[Callable[[], None]]) -> None:
        self._is_ticking = True
        try:
            for callback in callbacks:
                callback()
        finally:
            self._is_ticking = False

    def call_later(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call back from the event loop after a while.

        The loop looks at its timers before its tick, and sleeps in its poll for as long as they
        said then: what the tick itself asks for would be up to a second late, so it looks again.
        """
        self.hub.call_later(seconds, callback)
        if self._is_ticking and self._nudge is not None:
            self._nudge.set()

    def inbox_filled(self) -> None:
        """Deliver soon what was fetched."""
        if self._nudge is not None:
            self._nudge.set()
        elif self.hub is None:
            self._deliver_slices()

    def _deliver_slices(self) -> bool:
        couriers = [c.courier for c in list(self.channels) if "courier" in c.__dict__]
        more = [courier.deliver_slice() for courier in couriers if len(courier.inbox)]
        if self._nudge is not None and not any(more):
            self._nudge.clear()
        return bool(more)

    def drain_events(self, connection: Any, timeout: float | None = None) -> None:
        """Deliver one slice of messages, after waiting for some when none were fetched."""
        until = math.inf if timeout is None else time.monotonic() + timeout
        while not self._deliver_slices():
            self._check_silence()
            left = max(0.0, until - time.monotonic())
            try:
                super().drain_events(connection, timeout=min(left, TURN_SECONDS))  # type: ignore[misc]
            except TimeoutError:
                if left <= TURN_SECONDS or self.is_stopping():
                    raise
            else:
                return

    def close_connection(self, connection: Any) -> None:
        """Close all channels and leave the event loop."""
        super().close_connection(connection)  # type: ignore[misc]
        if self.hub is None:
            return
        self.hub.on_tick.discard(self._tick)
        # kombu cancels only those of its own cycle, and each connection has a new one.
        for name, entry in vars(self.cycle).items():
            if name.endswith("_tref") and entry is not None:
                entry.cancel()
        if self._watch is not None:
            self._watch.cancel()
        if self._nudge is not None:
            self.hub.remove_reader(self._nudge.fileno())
            self._nudge.close()
        self.hub = self._nudge = None


class EngineTransport(TransportMixin, stock.Transport):
    """``celeriac://``: one Redis or Valkey server, or ``celeriac+socket://``."""

    Channel = EngineChannel


class EngineTLSTransport(EngineTransport):
    """``celeriacs://``: the same over TLS."""

    def __init__(self, client: Any, **kwargs: Any) -> None:
        # kombu does this for the scheme rediss by its name.
        if not client.ssl:
            logger.warning(
                "rediss:// without ssl options: the server's certificate is not checked; "
                "add ?ssl_cert_reqs=required&ssl_ca_certs=... to the URL",
                extra={"event": "tls_unchecked"},
            )
            client.ssl = {"ssl_cert_reqs": ssl.CERT_NONE}
        super().__init__(client, **kwargs)


class EngineSentinelTransport(TransportMixin, stock.SentinelTransport):
    """``celeriacsentinel://``: the master that Sentinel names."""

    Channel = EngineSentinelChannel
