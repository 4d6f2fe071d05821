"""Whether who sends waits for a server that is away or refuses, and who says so.

A producer gets the error when the retries of its policy are spent. A worker waits: what a task
became is never found out again because it could not be sent. It tells its app how, by a `Waiting`
of its own; what must not wait says so with `at_once`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

_AT_ONCE: ContextVar[bool] = ContextVar("celeriac_at_once", default=False)


class Waiting(Protocol):
    """What a process does about a server that does not take what it is sent."""

    def until_taken(self, what: str, attempt: Callable[[], T]) -> T:
        """Call what sends until it is taken; `what` names the server, for the log."""

    def until_retried(self, task: Any, error: Any, attempt: Callable[[], T]) -> T:
        """Call a task's `retry`, as it is retried for this error, until its message is taken."""

    def before_sending(self, message: Any) -> None:
        """Do what has to be done before this task message may be sent."""


class NoWaiting:
    """A producer's way: one attempt, whose error is its caller's."""

    def until_taken(self, what: str, attempt: Callable[[], T]) -> T:
        """Call what sends."""
        return attempt()

    def until_retried(self, task: Any, error: Any, attempt: Callable[[], T]) -> T:
        """Call `retry`."""
        return attempt()

    def before_sending(self, message: Any) -> None:
        """Do nothing."""


_NO_WAITING = NoWaiting()


def waiting_of(app: Any) -> Waiting:
    """Return how this process waits for the servers of an app."""
    waiting: Waiting = getattr(app, "_celeriac_waiting", _NO_WAITING)
    return waiting


def wait_by(app: Any, waiting: Waiting | None) -> None:
    """Let this process wait that way for the servers of an app; None for not at all."""
    app._celeriac_waiting = _NO_WAITING if waiting is None else waiting


def is_waiting(app: Any) -> bool:
    """Return whether this process waits until what its tasks became is stored and sent."""
    return waiting_of(app) is not _NO_WAITING


@contextmanager
def at_once() -> Iterator[None]:
    """Let servers that are away or refuse raise within, whatever this process does elsewhere."""
    token = _AT_ONCE.set(True)
    try:
        yield
    finally:
        _AT_ONCE.reset(token)


def is_at_once() -> bool:
    """Return whether nothing may wait here."""
    return _AT_ONCE.get()
