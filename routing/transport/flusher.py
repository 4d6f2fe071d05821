"""Settling where no event loop has timers: gevent, and plain kombu clients."""

from __future__ import annotations

import threading
import time
from typing import Protocol

from routing.inflight.fetch_policy import SETTLE_SECONDS


class _Flushes(Protocol):
    def flush(self) -> None:
        """Carry what has ended to the broker."""

    @property
    def pause_seconds(self) -> float:
        """How long to wait, as the broker has refused it just now."""


class Flusher:
    """A thread (under gevent a greenlet) that settles a few milliseconds after an ending.

    Arguments:
        courier: what is asked to settle.
    """

    def __init__(self, courier: _Flushes) -> None:
        self._courier = courier
        self._event = threading.Event()
        self._stopped = False
        threading.Thread(target=self._run, name="celeriac-settle", daemon=True).start()

    def notify(self) -> None:
        """Settle soon."""
        self._event.set()

    def stop(self) -> None:
        """End the thread; stopping twice is safe."""
        self._stopped = True
        self._event.set()

    def _run(self) -> None:
        while True:
            self._event.wait()
            if self._stopped:
                return
            self._event.clear()
            time.sleep(max(SETTLE_SECONDS, self._courier.pause_seconds))
            self._courier.flush()
