"""Says that messages are dropped, without flooding the log.

The first drop of a queue is logged at once; then at most one line a second per queue, with the
number since the last line. A daemon timer, or the end of the process, writes the last line of a
burst. The ledger counts in any case.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from dataclasses import dataclass

logger = logging.getLogger(__name__)

#: Seconds between two lines about one queue.
INTERVAL_SECONDS = 1.0


@dataclass(slots=True)
class _Burst:
    policy: str
    count: int = 0
    last_line: float = float("-inf")
    is_timed: bool = False


class Drops:
    """The drops of this process that no line has told yet.

    Arguments:
        interval_seconds: time between two lines about one queue.
    """

    def __init__(self, interval_seconds: float = INTERVAL_SECONDS) -> None:
        self._interval = interval_seconds
        self._reset()
        # Timers do not survive a fork, and the parent writes its own lines.
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._bursts: dict[str, _Burst] = {}

    def note(self, queue: str, policy: str, count: int) -> None:
        """Count drops of a queue, and log them now or within the interval."""
        with self._lock:
            burst = self._bursts.setdefault(queue, _Burst(policy))
            burst.count += count
            wait = burst.last_line + self._interval - time.monotonic()
            if wait > 0 and not burst.is_timed:
                burst.is_timed = True
                self._start_timer(queue, wait)
        if wait <= 0:
            self._tell(queue)

    def _start_timer(self, queue: str, seconds: float) -> None:
        timer = threading.Timer(seconds, self._on_timer, (queue,))
        timer.daemon = True
        timer.start()

    def _on_timer(self, queue: str) -> None:
        if (burst := self._bursts.get(queue)) is not None:
            burst.is_timed = False
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
