"""One way to be called later: by a timer of the event loop or, where there is none, in a thread.

A prefork, threads or solo worker has kombu's loop; gevent and plain clients have none. There a
thread (under gevent a greenlet) keeps the time, and ends when nothing is due for a while.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Collection
from typing import Any, Protocol

logger = logging.getLogger(__name__)

#: A thread that has nothing to wait for stays so long for the next.
LINGER_SECONDS = 5.0


class Loop(Protocol):
    """An event loop, as a timer sees it."""

    def call_later(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call back after a while; only from the loop's own thread."""

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Call back soon; from any thread."""

    @property
    def is_here(self) -> bool:
        """Whether this is the loop's own thread."""

    def inbox_filled(self) -> None:
        """Come round soon: deliver what was fetched, and look for something to send."""


class Wakeup:
    """Calls a function at a time that may be made earlier, once for all who asked until then.

    Arguments:
        call: the function; a call too often does no harm.
        loop: returns the event loop, None where there is none.
    """

    def __init__(self, call: Callable[[], None], loop: Callable[[], Loop | None]) -> None:
        self._call = call
        self._loop = loop
        self._at = math.inf
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopped = False

    @property
    def is_set(self) -> bool:
        """Whether a call is to come."""
        return self._at < math.inf

    def within(self, seconds: float) -> None:
        """Call after so many seconds, or earlier when that was asked for; safe from any thread."""
        at = time.monotonic() + seconds
        if at >= self._at or self._stopped:
            return
        if (loop := self._loop()) is None:
            self._tell_thread(at)
        elif loop.is_here:
            self._at = at
            loop.call_later(seconds, self._fire)
        else:
            loop.call_soon(lambda: self.within(max(0.0, at - time.monotonic())))

    def stop(self) -> None:
        """Call no more; stopping twice is safe."""
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def _fire(self) -> None:
        self._at = math.inf
        if not self._stopped:
            self._call()

    # -- without a loop

    def _tell_thread(self, at: float) -> None:
        with self._changed:
            self._at = min(self._at, at)
            self._changed.notify()
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="celeriac-wakeup", daemon=True
                )
                self._thread.start()

    def _run(self) -> None:
        while self._wait():
            try:
                self._fire()
            except Exception:
                logger.exception("what was to be done later has failed")

    def _wait(self) -> bool:
        """Wait for the time that is set; False when the thread is to end."""
        linger_until = time.monotonic() + LINGER_SECONDS
        with self._changed:
            while not self._stopped:
                now = time.monotonic()
                if self._at <= now:
                    return True
                until = min(self._at, linger_until) if self._at == math.inf else self._at
                if until <= now:
                    break
                self._changed.wait(until - now)
            self._thread = None
        return False


class Nudge:
    """A file descriptor that is readable while the event loop has something to look at.

    The loop sleeps in its poll even when a callback of its own has just asked for more work, or for
    a timer, so the inbox keeps this readable until it is empty.
    """

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._is_set = False

    def fileno(self) -> int:
        """Return the descriptor to poll."""
        return self._reader.fileno()

    def set(self) -> None:
        """Make it readable."""
        if not self._is_set:
            self._is_set = True
            os.write(self._writer.fileno(), b"1")

    def clear(self) -> None:
        """Make it unreadable."""
        if self._is_set:
            self._is_set = False
            os.read(self._reader.fileno(), 1)

    def close(self) -> None:
        """Release the descriptors; closing twice is safe."""
        self._reader.close()
        self._writer.close()


class HubLoop:
    """kombu's event loop, as the engine uses it.

    Arguments:
        hub: kombu's.
        deliver: delivers a slice of what was fetched.
    """

    def __init__(self, hub: Any, deliver: Callable[[], Any]) -> None:
        self.hub = hub
        self._thread = threading.get_ident()
        self._is_ticking = False
        self._nudge = Nudge()
        hub.add_reader(self._nudge.fileno(), deliver)

    @property
    def is_here(self) -> bool:
        """Whether this is the loop's own thread."""
        return threading.get_ident() == self._thread

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Call back soon; from any thread."""
        self.hub.call_soon(callback)

    def call_later(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call back after a while.

        The loop looks at its timers before its tick, and sleeps in its poll for as long as they
        said then: what the tick itself asks for would be up to a second late, so it looks again.
        """
        self.hub.call_later(seconds, callback)
        if self._is_ticking:
            self._nudge.set()

    def run_tick(self, callbacks: Collection[Callable[[], None]]) -> None:
        """Call what is called at each tick."""
        self._is_ticking = True
        try:
            for callback in callbacks:
                callback()
        finally:
            self._is_ticking = False

    def inbox_filled(self) -> None:
        """Come round soon: deliver what was fetched, and look for something to send."""
        self._nudge.set()

    def is_done(self) -> None:
        """Note that nothing is left to deliver."""
        self._nudge.clear()

    def close(self) -> None:
        """Leave the loop."""
        self.hub.remove_reader(self._nudge.fileno())
        self._nudge.close()
