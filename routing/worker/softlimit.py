"""The soft time limit of a pool process: a signal that prefork sends to its main thread.

It is meant for what a task does. When that has ended, its outcome may have to wait for a server;
the limit must not turn it into a failure then.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery.exceptions import SoftTimeLimitExceeded


class SoftLimit:
    """The limit of this process, from the end of a batch's function until its items have ended."""

    def __init__(self) -> None:
        self._handler: Any = None

    def ignore(self) -> None:
        """Ignore the signal from now on."""
        if _is_ours():
            self._handler = _ignore()

    def restore(self) -> None:
        """Let the signal mean what it meant before."""
        if self._handler is not None:
            signal.signal(signal.SIGUSR1, self._handler)
            self._handler = None


SOFT_LIMIT = SoftLimit()


@contextmanager
def without_soft_limit() -> Iterator[None]:
    """Ignore the signal meanwhile."""
    if not _is_ours():
        yield
        return
    handler = _ignore()
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, handler)


def _is_ours() -> bool:
    is_main = threading.current_thread() is threading.main_thread()
    return hasattr(signal, "SIGUSR1") and is_main


def _ignore() -> Any:
    while True:
        try:
            return signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        except SoftTimeLimitExceeded:
            continue  # it fired in here, after the task had ended
