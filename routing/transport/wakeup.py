"""Tells a worker that waits for a bell when the next delayed message is due.

A blocking pop ends up to 100 ms after its timeout on an idle server, so the worker keeps the time:
by a timer of its event loop or, where there is none, in a thread (under gevent a greenlet).
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Protocol

#: What is due later is looked at again before: the wait for a bell takes a second at most.
HORIZON_SECONDS = 3.0


class Loop(Protocol):
    """What has timers."""

    def call_later(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call back after a while."""


class Alarm:
    """Calls a function at the time at which the next delayed message is due.

    Arguments:
        ring: what is called, from the event loop or from a thread; once too often does no harm.
    """

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._due_at = math.inf
        self._set_for = math.inf
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopped = False

    def learn(self, *, due_ms: int, server_ms: int) -> None:
        """Note when the next message is due by the server's clock (0 for never), and that clock.

        From its reply on, the server's clock is at least this far: the alarm is never early.
        """
        wait_seconds = max(0, due_ms - server_ms) / 1000 if due_ms else math.inf
        self._due_at = time.monotonic() + wait_seconds

    def is_over(self) -> bool:
        """Return whether the time has come; true once for what was learnt last."""
        if time.monotonic() < self._due_at:
            return False
        self._due_at = math.inf
        return True

    def set(self, loop: Loop | None) -> None:
        """Ring in time, by a timer of this event loop (None for a thread)."""
        due_at, now = self._due_at, time.monotonic()
        if due_at > now + HORIZON_SECONDS or due_at >= self._set_for:
            return
        if loop is not None:
            self._set_for = due_at
            loop.call_later(max(0.0, due_at - now), self._fire)
            return
        with self._changed:
            self._set_for = due_at
            self._changed.notify()
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="celeriac-alarm", daemon=True
                )
                self._thread.start()

    def stop(self) -> None:
        """End the thread and ring no more; stopping twice is safe."""
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def _run(self) -> None:
        while self._wait():
            self._fire()

    def _wait(self) -> bool:
        """Wait for the time that is set; False when stopped."""
        with self._changed:
            while not self._stopped:
                remaining = self._set_for - time.monotonic()
                if remaining <= 0:
                    return True
                self._changed.wait(None if remaining == math.inf else remaining)
        return False

    def _fire(self) -> None:
        self._set_for = math.inf
        if not self._stopped:
            self._ring()
