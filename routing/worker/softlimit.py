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
    """The limit of this process, while it runs a batch: it strikes where it can be told apart.

    Blocking the signal would not do: the kernel gives it to any other thread then, and Python
    handles it in the main one.
    """

    def __init__(self) -> None:
        self._handler: Any = None
        self._waits = False

    @property
    def is_held(self) -> bool:
        """Whether a limit that comes now is kept for later."""
        return signal.getsignal(signal.SIGUSR1) == self._note

    def hold(self) -> None:
        """Let a limit wait from now on."""
        if _is_ours():
            self._replace(self._note)

    def allow(self) -> None:
        """Let a limit strike, also one that has waited.

        Raises:
            SoftTimeLimitExceeded: one has.
        """
        if self._handler is not None:
            signal.signal(signal.SIGUSR1, self._handler)
            if self._waits:
                self._waits = False
                signal.raise_signal(signal.SIGUSR1)

    def ignore(self) -> None:
        """Ignore a limit from now on."""
        if _is_ours():
            self._replace(signal.SIG_IGN)

    def restore(self) -> None:
        """Let the signal mean what it meant before; a limit that has waited is too late."""
        if self._handler is not None:
            signal.signal(signal.SIGUSR1, self._handler)
            self._handler, self._waits = None, False

    def _replace(self, handler: Any) -> None:
        before, struck = _replaced(handler)
        self._waits = self._waits or struck
        if self._handler is None:
            self._handler = before

    def _note(self, *_: object) -> None:
        self._waits = True


SOFT_LIMIT = SoftLimit()


@contextmanager
def without_soft_limit() -> Iterator[None]:
    """Ignore the signal meanwhile; one that is to wait does so."""
    if not _is_ours() or SOFT_LIMIT.is_held:
        yield
        return
    handler, _ = _replaced(signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, handler)


def _is_ours() -> bool:
    is_main = threading.current_thread() is threading.main_thread()
    return hasattr(signal, "SIGUSR1") and is_main


def _replaced(handler: Any) -> tuple[Any, bool]:
    """Set a handler; return the one before, and whether a limit struck in here."""
    struck = False
    while True:
        try:
            return signal.signal(signal.SIGUSR1, handler), struck
        except SoftTimeLimitExceeded:
            struck = True
