"""A batch on its way through the pool: the unit of work that a dispatcher hands over.

Its callbacks fan out to the items' requests, so that started, succeeded, failed, retried, timed
out and lost mean for each item what they mean in Celery.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

from billiard.einfo import ExceptionInfo
from celery.exceptions import TimeLimitExceeded
from celery.worker import state
from kombu.utils.uuid import uuid

from batching.consumer.bisection import Bisection, search_of, who_is_to_blame
from batching.consumer.pace import PacedSlots
from batching.consumer.remains import what_remains
from batching.consumer.report import count_lost, tell_of
from batching.consumer.request import ItemRequest, collect_acks, end_each, packed
from batching.consumer.slots import end_call
from batching.errors import NotSettled
from batching.message import CallInfo
from batching.outcomes import Blame
from batching.pool.notes import NOTES
from batching.pool.run import run_parcels
from batching.pool.settle import Left
from routing.inflight.held import State
from routing.worker.clerk import CLERK
from routing.worker.exits import exits_in
from routing.worker.interruption import mark
from routing.worker.request import tell_repeated_starts
from routing.worker.stopping import STOP, asked_to_end, is_cut_off
from routing.worker.waits import WAITS

logger = logging.getLogger(__name__)

NOTHING: Mapping[ItemRequest, bytes] = MappingProxyType({})


class BatchUnit:
    """Items of one task, one queue and one key that run in one call.

    Arguments:
        queue: where its items came from.
        requests: the items so far; until the hand-over others may join them.
        wait: asks whether it is better to wait for some that are on their way, and if so arranges
            for that; another unit takes the items then.
        close: ends that, and returns all of them, and why their call is made now.
        slots: the slot that the unit waits for is one of these.
        blame: who has failed when the call fails without naming anybody; None where that is the
            task's to say.
        bisection: the search that this call is a part of.
        outcomes: what each item was given by a call that was lost, pickled: it is settled only.
    """

    def __init__(
        self,
        task: Any,
        consumer: Any,
        *,
        queue: str,
        requests: Sequence[ItemRequest],
        wait: Callable[[], bool],
        close: Callable[[], tuple[Sequence[ItemRequest], str]],
        slots: PacedSlots,
        blame: Blame | None = None,
        bisection: Bisection | None = None,
        outcomes: Mapping[ItemRequest, bytes] = NOTHING,
    ) -> None:
        self.queue, self.requests = queue, requests
        self._task = task
        self._consumer = consumer
        self._wait = wait
        self._close = close
        self._slots = slots
        self._blame = blame
        self._bisection = bisection
        self._outcomes = outcomes
        self._reason = ""
        self._page: int | None = None  # of the call's notes
        self._at: int | None = None  # place of the item that the function was at
        self._info, self._waited = CallInfo(), 0.0
        self._accepted, self._is_lost, self._is_over, self._pid = False, False, False, 0
        self._is_cut: bool | None = None

    def stand_for(
        self,
        requests: Sequence[ItemRequest],
        *,
        wait: Callable[[], bool],
        close: Callable[[], tuple[Sequence[ItemRequest], str]],
    ) -> None:
        """Wait for the slot of other items: its own have gone in their place."""
        self.requests, self._wait, self._close = requests, wait, close

    def hand_over(self) -> None:
        """Close the batch and give it to the pool; called when a slot is free for it."""
        if self._wait():
            mark(self.requests, State.WAITING)
            self._slots.unused()
            return
        own = self.requests
        chosen, self._reason = self._close()
        self.requests = chosen
        if chosen is not own:  # a fuller one goes first
            mark(own, State.WAITING)
            mark(chosen, State.HANDED)
        gone = [] if self._outcomes else [one for one in chosen if one.is_gone()]
        self.requests = [one for one in chosen if one not in gone] if gone else chosen
        if self._bisection is not None:
            self._bisection.trial.gone(gone)
        pool = self._consumer.pool
        if self._blame is None and self.requests:
            self._blame = who_is_to_blame(self._task, self.requests)
            if self._blame is None:
                self._bisection = self._search(self.requests, has_failed=False)
                self.requests, self._blame = self._bisection.first_call()
        if not self.requests:
            self._slots.unused()
            self._go_on([])
            return
        try:
            is_taken = self._give_to(pool)
        except BaseException:
            NOTES.release(self._take_page())
            self._abandon()
            raise
        if not is_taken:
            NOTES.release(self._take_page())
            self._slots.failed(self)

    def _give_to(self, pool: Any) -> bool:
        """Send the call to the pool; False where that does not take it."""
        hard, soft = self.requests[0].limits_of_call
        parcels = packed(self.requests, self._outcomes)
        self._waited = max(age or 0.0 for *_, age in parcels)
        self._info = CallInfo(uuid(), self.queue, self._reason, soft or hard)
        self._page = NOTES.take()
        result = pool.apply_async(
            run_parcels,
            args=(
                self._task.name,
                parcels,
                self._consumer.hostname,
                bool(soft or pool.options.get("soft_timeout")),
                exits_in(pool, hard),
                self._blame,
                self._page,
                self._info,
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
        return result is not None or self._accepted

    def _take_page(self) -> int | None:
        """Return the page of the call, which nobody else gives back then."""
        if self._page is not None:
            self._at = NOTES.at(self._page)
        page, self._page = self._page, None
        return page

    def _search(self, items: Sequence[ItemRequest], **known: Any) -> Bisection:
        trial = search_of(self._task, items, **known)
        return Bisection(self._task, trial, make=self._part, slots=self._slots)

    def _part(
        self,
        items: Sequence[ItemRequest],
        blame: Blame,
        bisection: Bisection | None,
        outcomes: Mapping[ItemRequest, bytes] = NOTHING,
    ) -> BatchUnit:
        """Return the unit of a further call of some of the items."""
        return BatchUnit(
            self._task,
            self._consumer,
            queue=self.queue,
            requests=items,
            wait=lambda: False,
            close=lambda: (items, "search"),
            slots=self._slots,
            blame=blame,
            bisection=bisection,
            outcomes=outcomes,
        )

    def _settle(self, outcomes: Mapping[ItemRequest, bytes]) -> None:
        """Settle what had its outcome when its process was lost."""
        for item in outcomes:
            item.wait_again()
        mark(list(outcomes), State.WAITING)
        self._slots.again(self._part(list(outcomes), Blame.EACH, None, outcomes))

    def _go_on(
        self, left: Sequence[ItemRequest], *, has_failed: bool = False, is_dropped: bool = False
    ) -> None:
        """Go on with the search that this call is a part of; where it has failed, with a new one.

        Arguments:
            left: the items that have not ended.
            has_failed: whether that is because the call has failed.
            is_dropped: whether they go on without the search.
        """
        bisection = self._bisection
        if self._is_over or (bisection is None and not has_failed):
            return  # a hard limit may strike when all of it has ended
        self._is_over = True
        suspect = None if self._at is None else self.requests[self._at]
        if bisection is None:
            self._search(left, has_failed=True, suspect=suspect).go_on(left)
        else:
            is_empty = is_dropped or not self.requests
            bisection.over(left, has_failed=has_failed, is_empty=is_empty, suspect=suspect)

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """The batch was taken up: each item has started."""
        self._accepted, self._pid = True, pid
        for request in self.requests:
            request.batch = weakref.ref(self)
        is_early = not self._task.acks_late
        if is_early:
            end_each(self.requests, lambda request: request.on_accepted(pid, time_accepted))
        else:
            self._start_all(pid, time.time() - (time.monotonic() - time_accepted))
            WAITS.note_starts(self.requests, time_accepted)
        if is_cut_off():
            # The cold shutdown has cancelled what it knew to run, and waits for the pool now.
            end_each(
                self.requests,
                lambda request: request.cancel(self._consumer.pool, emit_retry=is_early),
            )

    def _start_all(self, pid: int, started_at: float) -> None:
        mark(self.requests, State.STARTED)
        end_each(self.requests, lambda request: request.start(pid, started_at))
        tell_repeated_starts(self.requests)
        # What celery.worker.state.task_accepted counts for each.
        state.total_count[self._task.name] += len(self.requests)
        state.all_total_count[0] += len(self.requests)

    def on_done(self, answer: Any, **_: Any) -> None:
        """The call came back: each item ends its own way."""
        if isinstance(answer, ExceptionInfo):
            self.on_lost(answer)
            return
        NOTES.release(self._take_page())
        if self._is_cut and not isinstance(answer, list):
            return  # as a greenlet that was killed answers; its messages are requeued at the end
        if not isinstance(answer, list) or len(answer) != len(self.requests):
            self._requeue(answer)
            return
        ends = dict(zip(self.requests, answer, strict=True))
        left = [request for request, ended in ends.items() if ended is Left.SUSPECTED]
        with collect_acks(self.requests):
            over = [request for request, ended in ends.items() if ended is not Left.SUSPECTED]
            end_each(over, lambda request: request.end(ends[request]))
        self._go_on(left, has_failed=bool(left))
        eventer = self._consumer.event_dispatcher
        tell_of(self._info, self._task, ends, answer, self._waited, eventer)

    def on_lost(self, exc_info: Any, **_: Any) -> None:
        """The process died: what had succeeded is acknowledged, the rest goes by its own policy."""
        if isinstance(exc_info.exception, TimeLimitExceeded):
            return  # reported by on_timeout as well, which says everything
        self._end_unless_stored(
            lambda request: request.on_failure(exc_info),
            is_cut=STOP.told or bool(self._is_cut) or asked_to_end(exc_info.exception),
            repeats=bool(self._task.reject_on_worker_lost),
        )

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """A time limit of the batch passed; after the hard one its process is gone."""
        if not soft:
            self._end_unless_stored(
                lambda request: request.on_timeout(False, timeout),
                is_cut=STOP.told or bool(self._is_cut),
                repeats=True,
            )
            return
        size, name = len(self.requests), self._task.name
        logger.warning("Soft time limit (%ss) exceeded for a batch of %d %s", timeout, size, name)

    def cut(self, signal: Any = None) -> bool:
        """End the call, once for all its items; False where it runs to its end, as in threads."""
        if self._is_cut is None:
            self._is_cut = end_call(self._consumer.pool, self._pid, signal)
        return self._is_cut

    def _end_unless_stored(
        self, end: Callable[[ItemRequest], None], *, is_cut: bool, repeats: bool
    ) -> None:
        """End the items of a call that has left no answer, once: a pool may tell of it twice.

        With `is_cut` whoever ended it has it run again; `repeats` lets its items be called again.
        """
        if self._is_lost:
            return
        self._is_lost = True
        CLERK.do(self._task.app, partial(self._end_each_unless_stored, end, is_cut, repeats))

    def _end_each_unless_stored(
        self, end: Callable[[ItemRequest], None], is_cut: bool, repeats: bool
    ) -> None:
        if self._is_over:
            return  # it had ended, and its search has gone on
        found = what_remains(self._task, self.requests, self._take_page())
        for request, meta in found.stored:
            end_each([request], partial(ItemRequest.end_stored, stored=meta))
        left = found.left
        if is_cut:
            left = [*found.outcomes, *left]
        elif found.outcomes:
            self._settle(found.outcomes)
        is_theirs = self._blame is Blame.EACH or (self._blame is Blame.ALONE and len(left) == 1)
        if left and repeats and not is_theirs and not is_cut:
            self._go_on(left, has_failed=True)
        else:
            end_each(left, end)
            self._go_on([], is_dropped=is_cut)
        count_lost(self._info, self._task, self.requests, self._waited)

    def _requeue(self, answer: Any) -> None:
        why = answer if isinstance(answer, NotSettled) else f"unexpected answer {answer!r}"
        size, name = len(self.requests), self._task.name
        logger.warning("Batch of %d %s is requeued: %s", size, name, why)
        end_each(self.requests, lambda request: request.requeue())
        self._abandon()

    def go_back(self) -> None:
        """Return all that was to be called, in this call and in further ones of its search."""
        left = self.requests if self._bisection is None else self._bisection.trial.left
        end_each(left, lambda request: request.go_back())

    def _abandon(self) -> None:
        """Go on with the search that this call is a part of, without its items."""
        self._go_on([], is_dropped=True)
