"""What ends a run from outside, told apart from what its task raised.

`SystemExit` and `KeyboardInterrupt` end a process. Everything else that escapes from a task is the
task's own failure, `asyncio.CancelledError` and `gevent.Timeout` among it, although they are no
`Exception`, so that Celery's tracer lets them pass and takes the process for lost. Only what the
gevent pool itself throws into a greenlet, to stop it, must get back to that pool.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from billiard.common import terminate_handler_fired


@dataclass(frozen=True, slots=True)
class Exits:
    """The exits of one run.

    Attributes:
        green: whether it runs in a greenlet, which its pool may kill.
        limit_seconds: the hard time limit that this pool then keeps by a `gevent.Timeout`.
    """

    green: bool = False
    limit_seconds: float | None = None

    def has(self, error: BaseException) -> bool:
        """Return whether an error that escaped ends the run from outside."""
        if isinstance(error, (SystemExit, KeyboardInterrupt)):
            return True
        if not isinstance(error, Exception) and terminate_handler_fired():
            return True  # the process was told to go, and its cleanup failed on the way
        return self.green and self._is_from_pool(error)

    def _is_from_pool(self, error: BaseException) -> bool:
        if isinstance(error, sys.modules["greenlet"].GreenletExit):
            return True
        is_limit = isinstance(error, sys.modules["gevent"].Timeout)
        # An expired timeout of the task's own has other seconds, or ends with the limit anyway.
        return is_limit and getattr(error, "seconds", None) == self.limit_seconds is not None


#: The exits of a run in a pool that kills processes or nothing.
PROCESS_EXITS = Exits()


def exits_in(pool: Any, limit_seconds: float | None) -> Exits:
    """Return the exits of a run that is about to be sent to a pool, with its hard time limit."""
    if not getattr(pool, "is_green", False):
        return PROCESS_EXITS
    limit = getattr(pool, "timeout", None) if limit_seconds is None else limit_seconds
    return Exits(green=True, limit_seconds=limit)
