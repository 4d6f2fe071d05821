"""Results of calls, by looking rather than by being told.

``result.get()`` subscribes to the result of a chain's last task, or a group's, only when it is
called: what arrives between its look and its subscription is missed, and nothing looks again.
"""

from __future__ import annotations

from typing import Any

from tests.support.wait import eventually


def value(result: Any, *, timeout: float = 10) -> Any:
    """Return what a call returned, a list for a group; raises what it raised."""
    if hasattr(result, "results"):
        return [value(each, timeout=timeout) for each in result.results]
    eventually(result.ready, timeout, message=lambda: f"{result!r} is {result.state}")
    return result.get(timeout=1)


def outcome(result: Any, *, timeout: float = 20) -> Any:
    """Return what a call returned, or the exception that it raised."""
    eventually(result.ready, timeout, message=lambda: f"{result!r} is {result.state}")
    return result.get(timeout=1, propagate=False)
