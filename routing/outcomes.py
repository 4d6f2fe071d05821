"""How long a worker waits for a result backend that is away.

A task that has succeeded waits with its result until the backend is back: failing it would make a
dead letter of work that is done. The worker's own process ends messages too (revoked, too old,
stopped); it must not wait, as everything else would wait with it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_AT_ONCE: ContextVar[bool] = ContextVar("celeriac_at_once", default=False)


def wait_for_results(app: Any) -> None:
    """Let the tasks of this worker wait for the result backend, unless the app has said no.

    Only in workers: a caller who asks for a result wants an error.
    """
    setting = "result_backend_always_retry"
    if not app.conf.value_set_for(setting):
        app.conf[setting] = True
        app.backend.always_retry = True  # it may have been made before
    app.backend._sleep = _sleep


@contextmanager
def at_once() -> Iterator[None]:
    """Let the result backend raise when it is away, whatever it does elsewhere."""
    token = _AT_ONCE.set(True)
    try:
        yield
    finally:
        _AT_ONCE.reset(token)


def _sleep(seconds: float) -> None:
    """What Celery's backends call between two tries, while they handle the error."""
    error = sys.exc_info()[1]
    if _AT_ONCE.get() and error is not None:
        raise error
    time.sleep(seconds)
