"""Says that messages are dropped, without flooding the log.

The first drop of a queue is logged at once; then at most one line a second per queue, with the
number since the last line. A thread, or the end of the process, writes the last line of a burst.
The ledger counts in any case.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from dataclasses import dataclass

from routing.transport.wakeup import Wakeup

logger = logging.getLogger(__name__)

#: Seconds between two lines about one queue.
INTERVAL_SECONDS = 1.0


@dataclass(slots=True)
class _Burst:
    policy: str
    count: int = 0
    last_line: float = float("-inf")


class Drops:
    """The drops of this process that no line has told yet.

    Arguments:
        interval_seconds: time between two lines about one queue.
    """

    def __init__(self, interval_seconds: float = INTERVAL_SECONDS) -> None:
        self._interval = interval_seconds
        self._reset()
        # Threads do not survive a fork, and the parent writes its own lines.
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._bursts: dict[str, _Burst] = {}
        self._later = Wakeup(self._tell_what_is_due, lambda: None)

    def note(self, queue: str, policy: str, count: int) -> None:
        """Count drops of a queue, and log them now or within the interval."""
        with self._lock:
            burst = self._bursts.setdefault(queue, _Burst(policy))
            burst.count += count
        self._tell_what_is_due()

    def _tell_what_is_due(self) -> None:
        now = time.monotonic()
        for queue, burst in list(self._bursts.items()):
            wait = burst.last_line + self._interval - now
            if burst.count and wait > 0:
                self._later.within(wait)
            elif burst.count:
                self._tell(queue)

    def flush(self) -> None:
        """Log what no line has told yet."""
        for queue in list(self._bursts):
            self._tell(queue)

    def _tell(self, queue: str) -> None:
        with self._lock:
            burst = self._bursts.get(queue)
            if burst is None or not burst.count:
                return
            count, burst.count = burst.count, 0
            burst.last_line = time.monotonic()
        logger.warning(
            "queue %r is full: %d message%s %s (overflow = %s); add workers, raise its bound, "
            "or send less",
            queue,
            count,
            "" if count == 1 else "s",
            "kept as dead letters" if burst.policy == "dead_letter" else "dropped",
            burst.policy,
            extra={
                "event": "messages_dropped",
                "queue": queue,
                "count": count,
                "policy": burst.policy,
            },
        )


DROPS = Drops()
atexit.register(DROPS.flush)
