"""How a worker waits for a server that does not take what its tasks became.

It is known once they have run, and is never found out again because it could not be stored or sent:
it waits with its slot until the server takes it, whether that was away or refused (full memory,
somebody's script). So a server that takes nothing stops the fetching, as no slot is free, and fills
no memory. Only a cold shutdown ends the wait: then the message is requeued.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from traceback import format_exc
from typing import Any, TypeVar

from celery.app.task import get_actual_ignore_result
from celery.exceptions import Reject
from celery.utils.time import get_exponential_backoff_interval

from routing.inflight.forks import rest
from routing.redis.faults import is_passing
from routing.transport.gathering import current
from routing.transport.outage import is_at_once
from routing.worker.softlimit import without_soft_limit
from routing.worker.stopping import is_cut_off

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Milliseconds before the second try, doubled with each, and at most, unless the app's settings say
#: otherwise: a server that is back is noticed within seconds.
FIRST_WAIT_MS = 100
LONGEST_WAIT_MS = 2000

#: In a request: its retry is stored, so that the tracer does not store it again, after it was sent.
RETRY_STORED = "_celeriac_retry_stored"

_RETRYING: ContextVar[tuple[Any, Any] | None] = ContextVar("celeriac_retrying", default=None)


class CutOff(Reject):
    """The worker stops cold while an outcome waits: its message is requeued."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(error, requeue=True)


class WorkersWaiting:
    """What a worker does about a broker that is away or refuses; see `Waiting`."""

    def until_taken(self, what: str, attempt: Callable[[], T]) -> T:
        """Call what publishes, again and again while the broker is away or refuses.

        Raises:
            Exception: what would be raised again.
        """
        if is_at_once():
            return attempt()
        with without_soft_limit():
            return until(what, attempt, is_passing)

    def until_retried(self, task: Any, error: Any, attempt: Callable[[], T]) -> T:
        """Call a task's stock `retry` until its message is taken.

        Just before that is sent, the state is stored: the next run may end before this one does.

        Arguments:
            task: the current task.
            error: why it is retried; it is raised when the retries are spent.
            attempt: calls `retry`.
        """

        def was_refused(refused: Exception) -> bool:
            # Everything else is said about the task, not about its message.
            is_given = refused is error
            reason = refused.reason if isinstance(refused, Reject) and not is_given else None
            return isinstance(reason, Exception) and is_passing(reason)

        with without_soft_limit(), _storing_first(task, error):
            return until("the broker", attempt, was_refused)

    def before_sending(self, message: Any) -> None:
        """Store what has to be stored before this task message may be sent.

        Where messages are gathered, what sends them stores before it does.
        """
        if (retrying := _RETRYING.get()) is None or current() is not None:
            return
        task, error = retrying
        request = task.request
        # In either protocol.
        fields = message.headers or (message.body if isinstance(message.body, dict) else {})
        if request.id != fields.get("id") or request.is_eager or RETRY_STORED in vars(request):
            return
        if get_actual_ignore_result(task, request) and not task.store_errors_even_if_ignored:
            return
        trace = format_exc() if sys.exc_info()[0] is not None else None
        try:
            task.backend.mark_as_retry(request.id, error, trace, request=request)
        except CutOff:
            raise  # its own message is requeued, so no retry of it may be sent
        except Exception:
            # The tracer says what becomes of it, as it does without this.
            logger.debug("a retry could not be stored before it was sent", exc_info=True)
        else:
            setattr(request, RETRY_STORED, True)


@contextmanager
def _storing_first(task: Any, error: Any) -> Iterator[None]:
    token = _RETRYING.set((task, error))
    try:
        yield
    finally:
        _RETRYING.reset(token)


def interval_seconds(
    tries: int, *, first_ms: int = FIRST_WAIT_MS, longest_ms: int = LONGEST_WAIT_MS
) -> float:
    """Return how long to wait after so many tries: doubled with each, with jitter."""
    milliseconds: float = get_exponential_backoff_interval(first_ms, tries, longest_ms, True)
    return milliseconds / 1000


def until(
    what: str,
    attempt: Callable[[], T],
    again: Callable[[Exception], bool],
    interval: Callable[[int], float] = interval_seconds,
    *,
    at_most: float = float("inf"),
) -> T:
    """Call a server until it answers.

    Arguments:
        what: its name, for the log.
        attempt: the call.
        again: whether to call again after an error.
        interval: seconds to wait after so many tries.
        at_most: tries after the first one.

    Raises:
        CutOff: the worker stops cold.
        Exception: what would be raised again.
    """
    tries, since = 0, 0.0
    while True:
        try:
            value = attempt()
        except Exception as error:
            if tries >= at_most:
                raise
            if not again(error):
                if tries and not is_passing(error):
                    _say_waited(what, since)  # it was answered
                raise
            if is_cut_off():
                raise CutOff(error) from error
            tries += 1
            if tries == 1:
                since = time.monotonic()
                logger.warning(
                    "waiting for %s: %s: %s",
                    what,
                    type(error).__name__,
                    error,
                    extra={"event": "outcome_waits"},
                )
        else:
            if tries:
                _say_waited(what, since)
            return value
        rest(interval(tries))


def _say_waited(what: str, since: float) -> None:
    seconds = time.monotonic() - since
    logger.warning("waited %.1f s for %s", seconds, what, extra={"event": "outcome_stored"})
