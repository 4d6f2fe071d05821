"""Waiting for what another process does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

#: Seconds between two looks.
POLL_SECONDS = 0.03

_NEVER_SET = threading.Event()


def elapse(seconds: float) -> None:
    """Let time pass that is what a test is about: the length of an outage, or an age.

    Never to wait for something that somebody does: that is what `eventually` asks for.
    """
    until = time.monotonic() + seconds
    eventually(lambda: time.monotonic() >= until, seconds + 60)


def eventually(
    predicate: Callable[[], T],
    timeout: float = 10,
    *,
    message: str | Callable[[], str] = "",
    poll_seconds: float = POLL_SECONDS,
) -> T:
    """Return the predicate's first true value.

    Arguments:
        predicate: asked again and again.
        timeout: seconds after which the wait has failed.
        message: what was waited for, or a function that describes what was found instead.
        poll_seconds: pause between two looks; without one a test starves what it waits for.

    Raises:
        AssertionError: the predicate stayed false.
    """
    until = time.monotonic() + timeout
    while True:
        if value := predicate():
            return value
        if time.monotonic() >= until:
            found = message() if callable(message) else message
            raise AssertionError(f"not within {timeout} s: {found or predicate}")
        _NEVER_SET.wait(poll_seconds)


def throughout(predicate: Callable[[], T], seconds: float) -> T:
    """Assert that the predicate stays true for a while; returns its last value."""
    until = time.monotonic() + seconds
    while True:
        value = predicate()
        assert value, f"was true for less than {seconds} s: {predicate}"
        if time.monotonic() >= until:
            return value
        _NEVER_SET.wait(POLL_SECONDS)
