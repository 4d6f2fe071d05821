"""A batch on its way through the pool: the unit of work that a dispatcher hands over.

Its callbacks fan out to the items' requests, so that started, succeeded, failed, retried, timed
out and lost mean for each item what they mean in Celery.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from billiard.common import TERM_SIGNAL
from billiard.einfo import ExceptionInfo
from celery.exceptions import TimeLimitExceeded
from celery.worker import state

from batching.consumer.request import ItemRequest, collect_acks
from batching.consumer.slots import BatchSlots
from batching.errors import NotSettled
from batching.message import pack
from batching.pool import results
from batching.pool.run import run_parcels
from routing.inflight.held import State
from routing.worker.clerk import CLERK
from routing.worker.exits import exits_in
from routing.worker.outage import CutOff
from routing.worker.request import tell_repeated_starts
from routing.worker.stopping import is_cut_off
from routing.worker.waits import WAITS

logger = logging.getLogger(__name__)


class BatchUnit:
    """Items of one task, one queue and one key that run in one call.

    Arguments:
        queue: where its items came from.
        requests: the items so far; until the hand-over others may join them.
        wait: asks whether it is better to wait for some that are on their way, and if so arranges
            for that; another unit takes the items then.
        close: ends that, and returns all of them.
        slots: the slot that the unit waits for is one of these.
    """

    def __init__(
        self,
        task: Any,
        consumer: Any,
        *,
        queue: str,
        requests: Sequence[ItemRequest],
        wait: Callable[[], bool],
        close: Callable[[], Sequence[ItemRequest]],
        slots: BatchSlots,
    ) -> None:
        self.queue = queue
        self.requests: Sequence[ItemRequest] = requests
        self._task = task
        self._consumer = consumer
        self._wait = wait
        self._close = close
        self._slots = slots
        self._accepted = False
        self._pid = 0
        self._is_cut: bool | None = None

    def hand_over(self) -> None:
        """Close the batch and give it to the pool; called when a slot is free for it."""
        if self._wait():
            self._each(lambda request: request.mark(State.WAITING))
            self._slots.unused()
            return
        self.requests = [request for request in self._close() if not request.is_gone()]
        pool = self._consumer.pool
        if not self.requests:
            self._slots.unused()
            return
        hard, soft = self._time_limits()
        parcels = [pack(request, request.invalid) for request in self.requests]
        result = pool.apply_async(
            run_parcels,
            args=(
                self._task.name,
                parcels,
                self._consumer.hostname,
                bool(soft or pool.options.get("soft_timeout")),
                exits_in(pool, hard),
            ),
            accept_callback=self.on_accepted,
            timeout_callback=self.on_timeout,
            callback=self.on_done,
            error_callback=self.on_lost,
            soft_timeout=soft,
            timeout=hard,
            correlation_id=self.requests[0].id,
        )
        # A closing pool answers None; so does the solo pool, but it has run the batch by then.
        if result is None and not self._accepted:
            self._slots.failed(self)

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """The batch was taken up: each item has started."""
        self._accepted, self._pid = True, pid
        for request in self.requests:
            request.batch = weakref.ref(self)
        is_early = not self._task.acks_late
        if is_early:
            self._each(lambda request: request.on_accepted(pid, time_accepted))
        else:
            self._start_all(pid, time.time() - (time.monotonic() - time_accepted))
            WAITS.note_starts(self.requests, time_accepted)
        if is_cut_off():
            # The cold shutdown has cancelled what it knew to run, and waits for the pool now.
            self._each(lambda request: request.cancel(self._consumer.pool, emit_retry=is_early))

    def _start_all(self, pid: int, started_at: float) -> None:
        self._each(lambda request: request.start(pid, started_at))
        tell_repeated_starts(self.requests)
        # What celery.worker.state.task_accepted counts for each.
        state.total_count[self._task.name] += len(self.requests)
        state.all_total_count[0] += len(self.requests)

    def on_done(self, answer: Any, **_: Any) -> None:
        """The call came back: each item ends its own way."""
        if isinstance(answer, ExceptionInfo):
            self.on_lost(answer)
            return
        if self._is_cut and not isinstance(answer, list):
            return  # as a greenlet that was killed answers; its messages are requeued at the end
        if not isinstance(answer, list) or len(answer) != len(self.requests):
            self._requeue(answer)
            return
        with collect_acks(self.requests):
            for request, ended in zip(self.requests, answer, strict=True):
                try:
                    request.end(ended)
                except Exception:
                    logger.exception("Item %s could not be ended", request)

    def on_lost(self, exc_info: Any, **_: Any) -> None:
        """The process died: what had succeeded is acknowledged, the rest goes by its own policy."""
        if isinstance(exc_info.exception, TimeLimitExceeded):
            return  # reported by on_timeout as well, which says everything
        self._end_unless_stored(lambda request: request.on_failure(exc_info))

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """A time limit of the batch passed; after the hard one its process is gone."""
        if not soft:
            self._end_unless_stored(lambda request: request.on_timeout(False, timeout))
            return
        logger.warning(
            "Soft time limit (%ss) exceeded for a batch of %d %s",
            timeout,
            len(self.requests),
            self._task.name,
        )

    def cut(self, signal: Any = None) -> bool:
        """End the call, once for all its items; False where it runs to its end, as in threads."""
        if self._is_cut is None:
            self._is_cut = self._terminate(signal)
        return self._is_cut

    def _terminate(self, signal: Any) -> bool:
        try:
            self._consumer.pool.terminate_job(self._pid, signal or TERM_SIGNAL)
        except NotImplementedError:
            logger.info(
                "Batch of %d %s runs to its end: this pool cannot stop it",
                len(self.requests),
                self._task.name,
            )
            return False
        return True

    def _end_unless_stored(self, end: Callable[[ItemRequest], None]) -> None:
        CLERK.do(self._task.app, partial(self._end_each_unless_stored, end))

    def _end_each_unless_stored(self, end: Callable[[ItemRequest], None]) -> None:
        stored = self._stored_successes()
        for request in self.requests:
            if request.id in stored:
                self._guarded(request, lambda request: request.end_stored(stored[request.id]))
            else:
                self._guarded(request, end)

    def _time_limits(self) -> tuple[float | None, float | None]:
        """Return the hard and soft limit: those of its messages, which are alike, or the task's."""
        hard, soft = self.requests[0].time_limits
        return hard or self._task.time_limit, soft or self._task.soft_time_limit

    def _stored_successes(self) -> dict[str, Any]:
        ids = [request.id for request in self.requests if not request.ignore_result]
        if not ids:
            return {}
        try:
            return results.stored_successes(self._task.backend, ids)
        except Exception as error:
            if isinstance(error, CutOff):
                raise  # as the worker ends: they are requeued
            # No backend: then every item is handled as lost.
            logger.warning("Results of a lost batch could not be read", exc_info=True)
            return {}

    def _requeue(self, answer: Any) -> None:
        reason = answer if isinstance(answer, NotSettled) else f"unexpected answer {answer!r}"
        logger.warning(
            "Batch of %d %s is requeued: %s", len(self.requests), self._task.name, reason
        )
        self._each(lambda request: request.requeue())

    def _each(self, end: Callable[[ItemRequest], None]) -> None:
        for request in self.requests:
            self._guarded(request, end)

    def _guarded(self, request: ItemRequest, end: Callable[[ItemRequest], None]) -> None:
        """What one item's ending raises is not its neighbours' business."""
        try:
            end(request)
        except Exception:
            logger.exception("Item %s could not be updated", request)
