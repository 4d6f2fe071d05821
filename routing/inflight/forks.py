"""Keeps pool processes from being forked in the middle of what a thread does.

A forked child has the locks of all threads as they were, and nobody in it to release them: a lock
that is held for a moment, such as the one under which a property is computed once, then holds the
child up for ever. So threads of the worker's parent work within `unforked`, and a fork waits until
none of them does, a moment at most: a call that hangs must not keep the pool from its processes.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: Most seconds that a fork waits: calls that take longer wait for a server, and hold no such lock.
LONGEST_WAIT_SECONDS = 0.5


class _Forks:
    def __init__(self) -> None:
        self._reset()
        os.register_at_fork(
            before=self._before, after_in_parent=self._after, after_in_child=self._reset
        )

    def _reset(self) -> None:
        self._changed = threading.Condition()
        self._mine = threading.local()
        self._working = 0
        self._is_forking = False

    def enter(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._is_forking)
            self._working += 1
        self._mine.works = True

    def leave(self) -> None:
        self._mine.works = False
        with self._changed:
            self._working -= 1
            self._changed.notify_all()

    @property
    def works_here(self) -> bool:
        return getattr(self._mine, "works", False)

    def _before(self) -> None:
        # Held while it is forked, so that nobody begins meanwhile.
        self._changed.acquire()
        self._is_forking = True
        own = int(self.works_here)
        self._changed.wait_for(lambda: self._working <= own, LONGEST_WAIT_SECONDS)

    def _after(self) -> None:
        self._is_forking = False
        self._changed.notify_all()
        self._changed.release()


_FORKS = _Forks()


@contextmanager
def unforked() -> Iterator[None]:
    """Let no process be forked within, but while this thread has a `rest`."""
    if _FORKS.works_here:
        yield
        return
    _FORKS.enter()
    try:
        yield
    finally:
        _FORKS.leave()


def rest(seconds: float) -> None:
    """Sleep; processes may be forked meanwhile."""
    works = _FORKS.works_here
    if works:
        _FORKS.leave()
    try:
        time.sleep(seconds)
    finally:
        if works:
            _FORKS.enter()


def in_children(method: Callable[[], None]) -> None:
    """Call a method of an object, as long as that lives, in every process that is forked."""
    reference = weakref.WeakMethod(method)

    def call() -> None:
        if (alive := reference()) is not None:
            alive()

    os.register_at_fork(after_in_child=call)
