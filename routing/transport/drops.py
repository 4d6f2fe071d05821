"""Says that messages are dropped, once a second and queue at most; the ledger counts anyway."""

from __future__ import annotations

import atexit
import logging
from functools import partial

from routing.transport.bursts import INTERVAL_SECONDS, Bursts

logger = logging.getLogger(__name__)


class Drops:
    """The drops of this process that no line has told yet.

    Arguments:
        interval_seconds: time between two lines about one queue.
    """

    def __init__(self, interval_seconds: float = INTERVAL_SECONDS) -> None:
        self._bursts = Bursts(interval_seconds)

    def note(self, queue: str, policy: str, count: int) -> None:
        """Count drops of a queue, and log them now or within the interval."""
        self._bursts.note(queue, partial(_say, queue, policy), count)

    def flush(self) -> None:
        """Log what no line has told yet."""
        self._bursts.flush()


def _say(queue: str, policy: str, count: int) -> None:
    logger.warning(
        "queue %r is full: %d message%s %s (overflow = %s); add workers, raise its bound, "
        "or send less",
        queue,
        count,
        "" if count == 1 else "s",
        "kept as dead letters" if policy == "dead_letter" else "dropped",
        policy,
        extra={"event": "messages_dropped", "queue": queue, "count": count, "policy": policy},
    )


DROPS = Drops()
atexit.register(DROPS.flush)
