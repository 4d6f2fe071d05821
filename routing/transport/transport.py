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

from routing import upstream
from routing.transport.channel import EngineChannel, EngineSentinelChannel
from routing.transport.wakeup import HubLoop

logger = logging.getLogger(__name__)


#: Seconds between two looks for a reply that is overdue.
WATCH_SECONDS = 1.0

#: A worker without kombu's event loop learns between two polls that it was told to stop.
TURN_SECONDS = 0.2


class TransportMixin:
    """Delivers what channels fetched: from the event loop in slices, else from ``drain_events``."""

    #: The worker's event loop once it runs; None for gevent and for plain clients.
    loop: HubLoop | None = None
    _tick: Callable[[], None] | None = None
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
        self.loop = HubLoop(loop, self._deliver_slices)
        self._watch = loop.call_repeatedly(WATCH_SECONDS, self._check_silence)

    def _check_silence(self) -> None:
        for channel in list(self.channels):
            if "fetcher" in channel.__dict__:
                channel.fetcher.check_silence()

    def _run_tick(self, callbacks: frozenset[Callable[[], None]]) -> None:
        if self.loop is not None:
            self.loop.run_tick(callbacks)

    def inbox_filled(self) -> None:
        """Deliver soon what was fetched."""
        if self.loop is not None:
            self.loop.inbox_filled()
        else:
            self._deliver_slices()

    def _deliver_slices(self) -> bool:
        fetchers = [c.fetcher for c in list(self.channels) if "fetcher" in c.__dict__]
        more = [fetcher.deliver_slice() for fetcher in fetchers if len(fetcher.inbox)]
        if self.loop is not None and not any(more):
            self.loop.is_done()
        return bool(more)

    @property
    def _is_stopping(self) -> bool:
        fetchers = [c for c in list(self.channels) if "fetcher" in c.__dict__]
        return any(channel.link.holdings.is_stopping() for channel in fetchers)

    def drain_events(self, connection: Any, timeout: float | None = None) -> None:
        """Deliver one slice of messages, after waiting for some when none were fetched."""
        until = math.inf if timeout is None else time.monotonic() + timeout
        while not self._deliver_slices():
            self._check_silence()
            left = max(0.0, until - time.monotonic())
            try:
                super().drain_events(connection, timeout=min(left, TURN_SECONDS))  # type: ignore[misc]
            except TimeoutError:
                if left <= TURN_SECONDS or self._is_stopping:
                    raise
            else:
                return

    def close_connection(self, connection: Any) -> None:
        """Close all channels and leave the event loop."""
        super().close_connection(connection)  # type: ignore[misc]
        if self.loop is None:
            return
        self.loop.hub.on_tick.discard(self._tick)
        # kombu cancels only those of its own cycle, and each connection has a new one.
        for timer in upstream.CYCLE_TIMERS:
            if (entry := timer.find(self.cycle)) is not None:
                entry.cancel()
        if self._watch is not None:
            self._watch.cancel()
        self.loop.close()
        self.loop = None


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
