"""Threads and locks of the operating system, also where gevent has put its own in their place.

A greenlet waits while other greenlets compute or block, and leases do not wait for that.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any


def original(module: str, name: str) -> Any:
    """Return what a module of the standard library has of this name, without gevent's patches."""
    if "gevent.monkey" in sys.modules:
        from gevent.monkey import get_original

        return get_original(module, name)
    return getattr(import_module(module), name)


def threads_are_greenlets() -> bool:
    """Return whether what this process starts as a thread waits while anything else computes."""
    return original("_thread", "start_new_thread") is not import_module("_thread").start_new_thread


def new_lock() -> Any:
    """Return a lock that any thread may take; hold it only where nothing waits.

    A thread may take it again: Celery's handler of a cold shutdown runs wherever the signal finds
    the worker, and requeues what is held.
    """
    return original("_thread", "RLock")()


def start_thread(run: Callable[[], None]) -> None:
    """Run this in a thread that ends with the process."""
    original("_thread", "start_new_thread")(run, ())


class Signal:
    """A flag that one thread waits for and any thread sets; waiting takes it down."""

    def __init__(self) -> None:
        self._lock = original("_thread", "allocate_lock")()
        self._lock.acquire()

    def set(self) -> None:
        """Wake who waits, or who waits next; setting it twice wakes once."""
        try:
            self._lock.release()
        except RuntimeError:
            return  # it is set

    def wait(self, seconds: float) -> bool:
        """Wait for the flag at most so long; returns whether it was set."""
        return bool(self._lock.acquire(timeout=max(0.0, seconds)))
