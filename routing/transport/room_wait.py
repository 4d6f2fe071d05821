"""How long a producer waits for room in a full queue, how often it looks, and what it says."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable

from routing.errors import QueueFull

logger = logging.getLogger(__name__)

#: Seconds between a blocked producer's first two tries, and at most: a queue that makes room every
#: few milliseconds is met at once, and a stalled one costs forty short calls a second.
FIRST_WAIT_SECONDS = 0.001
LONGEST_WAIT_SECONDS = 0.025

#: Seconds after which a producer that waits says so, and how often it says so again: nobody should
#: look for long at a program that stands still.
TELL_AFTER_SECONDS = 5.0
TELL_EVERY_SECONDS = 60.0


class RoomWait:
    """How long a blocked producer waits, and how often it looks.

    Arguments:
        seconds: how long in all.
    """

    def __init__(self, seconds: float) -> None:
        self._since = time.monotonic()
        self._until = self._since + seconds
        self._tell_at = self._since + TELL_AFTER_SECONDS
        self._wait = FIRST_WAIT_SECONDS

    @property
    def is_long(self) -> bool:
        """Whether the waits do not grow any more."""
        return self._wait >= LONGEST_WAIT_SECONDS

    def tell(self, found: Callable[[], QueueFull]) -> None:
        """Log that a producer waits, after a while and then now and then.

        Arguments:
            found: returns how full the queue is.
        """
        now = time.monotonic()
        if now < self._tell_at:
            return
        self._tell_at = now + TELL_EVERY_SECONDS
        full = found()
        logger.warning(
            "queue %r is full: %d of at most %d %s wait; a producer has waited for room for %.0f s "
            "(overflow = block): are workers at work on it? block_timeout bounds the wait",
            full.queue,
            full.length,
            full.limit,
            full.unit,
            now - self._since,
            extra={"event": "producer_waits", "queue": full.queue, "seconds": now - self._since},
        )

    def end(self) -> None:
        """Wait no more."""
        self._until = self._since

    def wait(self) -> bool:
        """Wait a little longer than the last time; False when the time is over."""
        remaining = self._until - time.monotonic()
        if remaining <= 0:
            return False
        # Producers that were refused together must not come back together.
        time.sleep(min(remaining, self._wait * random.uniform(0.5, 1)))
        self._wait = min(self._wait * 2, LONGEST_WAIT_SECONDS)
        return True
