"""How long who publishes waits for a server that is there, and refuses for a while."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import TypeVar

from celery import current_task

from routing.redis.backoff import FIRST_SECONDS, LONGEST_SECONDS
from routing.redis.faults import ServerRefused

logger = logging.getLogger(__name__)

T = TypeVar("T")


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
                if current_task:
                    logger.warning(
                        "waiting for the broker: %s", error, extra={"event": "outcome_waits"}
                    )
            if time.monotonic() + pause > until:
                raise (error.__cause__ if is_push and error.__cause__ else error) from None
        time.sleep(pause)
        pause = min(LONGEST_SECONDS, pause * 2)


def _seconds(is_worker: bool) -> float:
    if current_task:
        return TASK_SECONDS
    return 0.0 if is_worker or in_event_loop() else PRODUCER_SECONDS


def in_event_loop() -> bool:
    """Return whether an event loop of asyncio runs in this thread, which must not wait."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
