"""How long to wait before what the server refused is tried again, and one line when that begins."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import TypeVar

from celery._state import get_current_task

from routing.redis.faults import Fault, ServerRefused, answer_of, fault_of

T = TypeVar("T")

logger = logging.getLogger(__name__)

#: The first wait: somebody's script is often over by then.
FIRST_SECONDS = 0.1

#: The longest wait: what has passed is noticed that soon, and a server in trouble is asked little.
LONGEST_SECONDS = 2.0

#: A refusal that comes sooner after the last one belongs to the same outage.
QUIET_SECONDS = 5.0


class Patience:
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


#: How long a producer waits for a server that refuses: somebody's script is over by then.
PRODUCER_SECONDS = 5.0

#: The same within a task: what it sends on belongs to work that was accepted.
TASK_SECONDS = 60.0


def patiently(call: Callable[[], T], *, is_worker: bool, is_push: bool = False) -> T:
    """Return what a call returns, called again for a while as long as the server refuses it.

    Arguments:
        call: changes nothing when it is refused.
        is_worker: whether this process is a worker's, whose event loop must not wait.
        is_push: whether to raise what the server said, when it has been waited for: kombu would
            try a refusal again as it does a lost connection, each time for so long.

    Raises:
        ServerRefused: the server still refuses.
    """
    until, pause = 0.0, FIRST_SECONDS
    while True:
        try:
            return call()
        except ServerRefused as error:
            if not until:
                if not (seconds := _seconds(is_worker)):
                    raise
                until = time.monotonic() + seconds
                if get_current_task() is not None:
                    logger.warning(
                        "waiting for the broker: %s", error, extra={"event": "outcome_waits"}
                    )
            if time.monotonic() + pause > until:
                raise (error.__cause__ if is_push and error.__cause__ else error) from None
        time.sleep(pause)
        pause = min(LONGEST_SECONDS, pause * 2)


def _seconds(is_worker: bool) -> float:
    if get_current_task() is not None:
        return TASK_SECONDS
    return 0.0 if is_worker or _is_in_event_loop() else PRODUCER_SECONDS


def _is_in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
