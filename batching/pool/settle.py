"""Each item ends by Celery's own tracer, one after the other.

The tracer runs the batch task's `run()`, which returns or raises the outcome that the item
carries in its request (`replay_outcome`). So signals, autoretry with backoff, retry limits, links,
errbacks, chains, chords, groups, results, custom states and hooks are Celery's, item by item,
without a line of them here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from enum import Enum
from typing import Any

from billiard.einfo import ExceptionInfo
from celery import states
from celery.app import trace
from celery.exceptions import BackendStoreError
from kombu.exceptions import OperationalError

from batching.batch import Item
from batching.outcomes import COUNTDOWNS, OUTCOME
from batching.pool.entry import replaying
from routing.redis.faults import is_final
from routing.worker.exits import Exits
from routing.worker.failure import failure, forget_frames
from routing.worker.traced import Answer, end_escaped, raise_exit

logger = logging.getLogger(__name__)


#: The errors that were logged while a batch is settled, with their tracebacks; None at other times.
_logged: ContextVar[set[int] | None] = ContextVar("batching_logged", default=None)


class _OneBatch(logging.Filter):
    """Has a batch's items logged as parts of one: what went well at DEBUG, each traceback once."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a line of Celery's tracer is logged."""
        if (logged := _logged.get()) is None:
            return True
        if record.msg == trace.LOG_SUCCESS:
            record.levelno, record.levelname = logging.DEBUG, "DEBUG"
            return bool(trace.logger.isEnabledFor(logging.DEBUG))
        if record.exc_info:
            if (error := id(record.exc_info[1])) in logged:
                record.exc_info = None
            logged.add(error)
        return True


trace.logger.addFilter(_OneBatch())


@contextmanager
def logged_as_one() -> Iterator[None]:
    """Log what is settled within as the items of one batch."""
    token = _logged.set(set())
    try:
        yield
    finally:
        _logged.reset(token)


class Left(Enum):
    """Why an item has not ended: what is answered for it in the place of what a plain task's is."""

    #: Its outcome could not be stored: its message is requeued.
    UNSTORED = "unstored"
    #: Its call failed, and nobody knows yet whose fault that was.
    SUSPECTED = "suspected"


class Clock:
    """Tells the tracer, which asks at the start and at the end of each item, its share of the call.

    Apart from what owns the tracer: a cycle would keep all of it until the collector comes.
    """

    def __init__(self, share_seconds: float) -> None:
        self._share = share_seconds
        self._started = False

    def restart(self) -> None:
        """Begin with the next item."""
        self._started = False

    def time(self) -> float:
        """Return 0, and the share when asked again."""
        if self._started:
            return self._share
        self._started = True
        return 0.0


class Settling:
    """Settles the items of one call, in order."""

    def __init__(self, task: Any, *, hostname: str, share_seconds: float, exits: Exits) -> None:
        self._task = task
        self._exits = exits
        self._clock = Clock(share_seconds)
        self._countdowns: dict[tuple[int, int], float] = {}
        # By module attribute: monitoring tools replace it.
        self._trace = trace.build_tracer(
            task.name,
            replaying(task),
            task.app.loader,
            hostname,
            app=task.app,
            monotonic=self._clock.time,
        )

    def settle(self, item: Item[Any], request: dict[str, Any]) -> Answer | Left:
        """End one item."""
        request[OUTCOME] = item.outcome
        request[COUNTDOWNS] = self._countdowns
        self._clock.restart()
        try:
            return self._settle(item, request)
        finally:
            # An outcome's error holds the frame of the batch function, and so every item.
            item.forget()

    def _settle(self, item: Item[Any], request: dict[str, Any]) -> Answer | Left:
        try:
            result, info, runtime, text = self._trace(item.id, item.args, item.kwargs, request)
        except (BackendStoreError, OperationalError) as error:
            if is_final(error):  # what it sends is refused
                if not ignores_result(self._task, request):
                    self._task.backend.store_result(item.id, error, states.FAILURE)
                return unstorable(error)
            logger.exception("The outcome of item %s could not be stored", item.id)
            return Left.UNSTORED
        except BaseException as error:
            if self._exits.has(error):
                raise_exit(error)
            return end_escaped(self._task.name, request, error, self._exits)
        if not info:
            return 0, text, runtime
        forget_frames(info.retval)
        return 1, failure(result), runtime


def ignores_result(task: Any, request: dict[str, Any]) -> bool:
    """Return whether nobody wants an item's result."""
    ignored = request.get("ignore_result")
    return bool(task.ignore_result if ignored is None else ignored)


def unstorable(error: Exception) -> Answer:
    """Return how an item ends whose outcome can never be stored: as a plain task, by that error."""
    try:
        raise error
    except Exception:
        return 1, failure(ExceptionInfo(internal=True)), None
