"""Stores what the worker's own process has to store, in a thread (under gevent a greenlet).

A task that was revoked, is too old, lost its process or ran over its time is ended by the parent.
Its result waits as long as any other, but the event loop must not: so such endings are made here,
one after the other, and the message is held, with its lease and its credit, until the result is
there.

A greenlet waits while a task computes, so under gevent the event loop gives an ending a moment
first; not for longer, and not to one that has others before it, as then the server is slow.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from routing.inflight.forks import unforked
from routing.inflight.locks import threads_are_greenlets
from routing.transport.outage import is_waiting
from routing.worker.stopping import is_cut_off

logger = logging.getLogger(__name__)

#: Seconds that a worker which stops gives to what is not stored yet; then it is requeued.
LAST_SECONDS = 2.0

#: Seconds that the event loop gives to one ending under gevent: some round trips.
MOMENT_SECONDS = 0.05


class Clerk:
    """Makes endings one by one, in the order in which they came."""

    def __init__(self) -> None:
        self._jobs: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def do(self, app: Any, job: Callable[[], None]) -> None:
        """Make an ending soon; at once where nothing waits, or when this is an ending's own part.

        What it raises is logged.
        """
        if not is_waiting(app) or self.is_here or is_cut_off():
            _do(job)
            return
        with self._changed:
            is_first = not self._jobs
            self._jobs.append(job)
            self._changed.notify_all()
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=self._run, name="celeriac-clerk", daemon=True
                )
                self._thread.start()
        if is_first and threads_are_greenlets():
            self.finish(MOMENT_SECONDS)

    @property
    def is_here(self) -> bool:
        """Whether this is the thread in which endings are made."""
        return threading.current_thread() is self._thread

    def finish(self, seconds: float = LAST_SECONDS) -> None:
        """Wait until all is done, for so long at most."""
        until = time.monotonic() + seconds
        with self._changed:
            while self._jobs and (left := until - time.monotonic()) > 0:
                self._changed.wait(left)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._jobs:
                    self._changed.wait()
                job = self._jobs[0]
            try:
                _do(job)
            except BaseException:  # of a hook; what comes after it must be ended, too
                logger.exception("a task could not be ended", extra={"event": "ending_failed"})
            del job  # it holds its message
            with self._changed:
                self._jobs.popleft()
                self._changed.notify_all()


def _do(job: Callable[[], None]) -> None:
    try:
        with unforked():
            job()
    except Exception:
        logger.exception("a task could not be ended", extra={"event": "ending_failed"})


#: That of this process.
CLERK = Clerk()
