"""How long to wait before what the server refused is tried again, and one line when that begins."""

from __future__ import annotations

import logging
import time

from routing.redis.faults import Fault, answer_of, fault_of

logger = logging.getLogger(__name__)

#: The first wait: somebody's script is often over by then.
FIRST_SECONDS = 0.1

#: The longest wait: what has passed is noticed that soon, and a server in trouble is asked little.
LONGEST_SECONDS = 2.0

#: A refusal that comes sooner after the last one belongs to the same outage.
QUIET_SECONDS = 5.0


class Backoff:
    """Waits that double from refusal to refusal, for one kind of call.

    Arguments:
        what: what is refused, for the log.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._pause = 0.0
        self._until = 0.0
        self._since = 0.0
        self._last = -QUIET_SECONDS

    @property
    def seconds_left(self) -> float:
        """How long nothing should be tried; 0 when it may be."""
        return max(0.0, self._until - time.monotonic()) if self._until else 0.0

    @property
    def lasts_seconds(self) -> float:
        """How long it has been refused; 0 when it is not."""
        return time.monotonic() - self._since if self._until else 0.0

    def refused(self, error: BaseException) -> None:
        """Note a refusal: what was asked is kept, and tried again after a while."""
        now = time.monotonic()
        if not self._until:
            self._since = now
        if now - self._last >= QUIET_SECONDS:
            self._pause = 0.0
            self._log(error)
        self._pause = min(LONGEST_SECONDS, self._pause * 2 or FIRST_SECONDS)
        self._until = now + self._pause
        self._last = self._until

    def passed(self) -> None:
        """Note that the server did it."""
        self._until = 0.0

    def _log(self, error: BaseException) -> None:
        is_bug = fault_of(error) is Fault.BUG
        logger.log(
            logging.ERROR if is_bug else logging.WARNING,
            "the broker refused to %s, trying again: %s",
            self._what,
            answer_of(error),
            extra={"event": "broker_refused"},
        )
