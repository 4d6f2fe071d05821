"""Requests whose run may be interrupted: cancelled, or lost with its process.

What a deploy cuts is nobody's fault: the message is requeued, uncharged. What killed its process
by itself says so on its message.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from billiard.exceptions import WorkerLostError
from celery.worker import request as stock
from celery.worker.state import successful_requests, task_ready

from routing.inflight.held import State
from routing.inflight.holdings import Holdings
from routing.redis.values import Mark
from routing.transport.message import EngineMessage
from routing.worker.clerk import CLERK
from routing.worker.followers import count_success
from routing.worker.stopping import STOP, asked_to_end

logger = logging.getLogger(__name__)

#: What is reported of a run whose process has gone.
EXITS = (WorkerLostError, SystemExit, KeyboardInterrupt)


def holdings_of(message: Any) -> Holdings | None:
    """Return the holdings that a message counts in.

    None for a message that was never held: of another transport, or without acknowledgement.
    """
    if isinstance(message, EngineMessage) and message.is_held:
        return message.link.holdings
    return None


def mark(requests: Sequence[Any], state: State) -> None:
    """Note how far the messages of these requests, which go one way, have come."""
    if requests and (holdings := holdings_of(requests[0].message)) is not None:
        holdings.mark([request.message.delivery_tag for request in requests], state)


class InterruptibleRequest(stock.Request):
    """A request that is returned when its run did not come to its end."""

    acknowledged: bool
    #: It waits for the rate of its task.
    is_limited = False
    #: It runs no more, but its result may be yet to be stored.
    _is_ending = False

    def limit(self, *, is_limited: bool) -> None:
        """Note that it waits for the rate of its task, or does so no more."""
        self.is_limited = is_limited
        if (holdings := holdings_of(self.message)) is not None:
            holdings.limit(self.message.delivery_tag, is_limited=is_limited)

    def is_lost(self) -> bool:
        """Whether its message is not held any more: it was requeued, or another worker has it."""
        holdings = holdings_of(self.message)
        if holdings is None or holdings.get(self.message.delivery_tag) is not None:
            return False
        task_ready(self)
        return True

    def cancel(self, pool: Any, *args: Any, **kwargs: Any) -> None:
        """End its run in a cold shutdown, or with the connection; in threads it runs to its end."""
        if self._is_ending:
            return  # only its ending is yet to be stored
        # First, as under gevent the pool answers while the cancellation is being announced.
        self._already_cancelled = bool(self.time_start)
        try:
            super().cancel(pool, *args, **kwargs)
        except NotImplementedError:
            self._already_cancelled = False
            logger.info("%s runs to its end: this pool cannot stop it", self)

    def _was_interrupted(self, error: BaseException) -> bool:
        """Tell whether its process was lost by a deploy or cancelled, not by what the task did."""
        if self.acknowledged or not isinstance(self.message, EngineMessage):
            return False
        if self._already_cancelled:  # however its process went then, also where a loss is an ending
            return True
        may_run_again = self.task.acks_late and self.task.reject_on_worker_lost
        return bool(may_run_again and (STOP.told or asked_to_end(error)))

    def _run_again(self, error: BaseException) -> None:
        """Return the message of an interrupted run; it is nobody's fault."""
        task_ready(self)
        if self._already_cancelled:
            self._requeue_cancelled()
            return
        logger.warning(
            "%s was interrupted and is requeued: %s",
            self,
            error,
            extra={"event": "interrupted"},
        )
        # Who asks only the process may do so again, at once.
        self._return(Mark.REDELIVERED if STOP.told else Mark.LATER)

    def _requeue_cancelled(self) -> None:
        """Return the message of a cancelled run, which Celery leaves unacknowledged.

        A worker that stops requeues all that it still holds, in order, so it need not.
        """
        if not STOP.told and not self.acknowledged and isinstance(self.message, EngineMessage):
            # What gevent's pool reports as a success would not be run again by this worker.
            successful_requests.discard(self.id)
            self._return(Mark.REDELIVERED)

    def _return(self, mark: Mark) -> None:
        """Return the message, which may have run in part, to the front of its queue uncharged."""
        self.message.link.holdings.requeue(self.message.delivery_tag, mark)
        self.acknowledged = True
        self.send_event("task-rejected", requeue=True)

    def come_again(self) -> None:
        """Return the message for a while, uncharged: its run failed through no fault of its own."""
        task_ready(self)
        self._return(Mark.AGAIN)

    def go_back(self) -> None:
        """Return the message to the front of its queue, as it may have run in part."""
        task_ready(self)
        self._return(Mark.REDELIVERED)

    def _success_was_stored(self) -> Any:
        """Tell whether the task had succeeded before its process was lost."""
        if stored := super()._success_was_stored():
            self.message.ending = "done"
            count_success(self.task, self._context, stored.get("result"))
        return stored

    def _retry_worker_lost(self, exc: Any, exc_info: Any) -> bool:
        """Send a retry in the place of a lost run, where the task wants that."""
        ending, self.message.ending = self.message.ending, "retried"
        if super()._retry_worker_lost(exc, exc_info):
            return True
        self.message.ending = ending
        return False

    def _end_interrupted(self, error: BaseException, end: Callable[[], None]) -> None:
        if self._success_was_stored():
            end()
        else:
            self._run_again(error)

    def _announce_cancelled(self, *args: Any, **kwargs: Any) -> None:
        # From now on, as what its process says when it is killed comes at any moment.
        self._already_cancelled = True
        CLERK.do(self.app, partial(super()._announce_cancelled, *args, **kwargs))


def exit_text(error: BaseException) -> str:
    """Return how a process was lost; what a task exited by says little without its name."""
    return str(error) if isinstance(error, WorkerLostError) else repr(error)
