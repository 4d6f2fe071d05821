"""How a worker takes in the messages of a batch task: Celery's `Task.Strategy` hook.

For each message it does what `celery.worker.strategy.default` does (decode, revoked, received,
ETA) and then, instead of handing the request to the pool, adds it to the task's buffer. The buffer
is asked with each message, when a slot falls idle, and when its oldest item has waited long enough,
what gets its turn for a slot. A batch that has its turn goes on growing until the slot is there; a
rate limit is one of calls, so it has to wait for that first (`pace.py`).
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MethodType
from typing import Any

from celery.exceptions import InvalidTaskError
from celery.utils.time import timezone
from celery.worker import state
from celery.worker.strategy import hybrid_to_proto2, proto1_to_proto2
from kombu.asynchronous.timer import to_timestamp

from batching.consumer.flush import limits_of
from batching.consumer.grouping import BatchGroup, Grouping, due_at
from batching.consumer.pace import Pace, PacedSlots
from batching.consumer.report import announce, log_received
from batching.consumer.request import ItemRequest
from batching.consumer.sizes import Window
from batching.consumer.slots import BatchSlots, count_slots, slots_for
from batching.consumer.unit import BatchUnit
from batching.consumer.window import Buffer
from routing import upstream
from routing.inflight.held import State
from routing.worker.interruption import mark

logger = logging.getLogger(__name__)


#: A batch lets its slot wait that long, once, for items that the broker is known to have: a few
#: round trips. When slots fall free together, what waits here is not enough for all of them.
PATIENCE_SECONDS = 0.01


def start(task: Any, app: Any, consumer: Any, **_: Any) -> Callable[..., None]:
    """Return the message handler of a batch task, as Celery's strategies do.

    Called at each (re)connect: what an earlier connection had buffered is forgotten, because the
    engine or the broker requeues it.
    """
    earlier = consumer.strategies.get(task.name)
    if isinstance(earlier, MethodType) and isinstance(earlier.__self__, Intake):
        earlier.__self__.clear()
    intake = Intake(task, app, consumer)
    dispatcher = getattr(consumer, "dispatcher", None)
    if dispatcher is not None:
        dispatcher.add_source(intake)
    else:
        count_slots(consumer)
    return intake.receive


class Intake:
    """Takes in one task's messages, and sends batches on their way."""

    def __init__(self, task: Any, app: Any, consumer: Any) -> None:
        self.task = task
        self.app = app
        self.consumer = consumer
        self._utc = app.uses_utc_timezone()
        self._slots: BatchSlots | None = None
        self._grouping = Grouping(task)
        #: The queues that items have come from.
        self._queues: set[str] = set()
        self._buffer: Buffer[BatchGroup, ItemRequest] = Buffer(
            limits_of(task), line_of=lambda group: group.queue
        )
        #: The units that stand for windows with a turn, by the window.
        self._units: dict[int, BatchUnit] = {}
        self._timer: Any = None
        self._timer_at = math.inf
        # The timer of some pools is a thread.
        self._lock = threading.RLock()
        self._pace = Pace(consumer, task.name, submit=self._submit, lock=self._lock)
        eventer = consumer.event_dispatcher
        self._eventer: Any = eventer if task.send_events else None
        self._request_options = {
            "app": app,
            "hostname": consumer.hostname,
            "eventer": eventer,
            "task": task,
            "connection_errors": consumer.connection_errors,
        }

    def receive(
        self, message: Any, body: Any, ack: Any, reject: Any, callbacks: Any, **_: Any
    ) -> None:
        """Take one message, as `celery.worker.strategy.default`'s handler does."""
        request = self._request(message, body, ack, reject)
        log_received(request)
        if request.is_gone():
            return
        announce(request, self.consumer, self._eventer)
        if request.eta:
            self._schedule(request)
            return
        self._add(request, callbacks)

    def slot_idle(self) -> None:
        """Send what may go now that a slot is free."""
        self._flush_due()

    def waiting(self) -> Mapping[str, int]:
        """Return how many items of each queue wait in a batch that others may still join."""
        counts: dict[str, int] = {}
        with self._lock:
            for group, size in self._buffer.sizes():
                counts[group.queue] = counts.get(group.queue, 0) + size
        return counts

    def drop_lost(self) -> None:
        """Forget items whose messages are not held any more."""
        with self._lock:
            for window in self._buffer.drop(
                ItemRequest.is_lost, lambda request: (request.size_bytes, request.cost)
            ):
                self._units.pop(id(window), None)

    def clear(self) -> None:
        """Forget what waits: its messages are requeued by whoever delivered them."""
        with self._lock:
            self._cancel_timer()
            self._pace.clear()
            self._units.clear()
            self._buffer.clear()

    def _request(self, message: Any, body: Any, ack: Any, reject: Any) -> ItemRequest:
        payload = message.payload
        if body is None and "args" not in payload:
            if not isinstance(payload, list | tuple) or len(payload) != 3:
                raise InvalidTaskError("Message body is not (args, kwargs, embed)")
            body, headers, decoded, utc = message.body, message.headers, False, self._utc
        elif "args" in payload:
            body, headers, decoded, utc = hybrid_to_proto2(message, payload)
        else:
            body, headers, decoded, utc = proto1_to_proto2(message, body)
        return ItemRequest(
            message,
            on_ack=ack,
            on_reject=reject,
            body=body,
            headers=headers,
            decoded=decoded,
            utc=utc,
            **self._request_options,
        )

    def _schedule(self, request: ItemRequest) -> None:
        """Hold an item with an ETA in the worker's timer until it is due."""
        try:
            if request.utc:
                eta = to_timestamp(timezone.to_system(request.eta))
            else:
                eta = to_timestamp(request.eta, self.app.timezone)
        except (OverflowError, ValueError) as error:
            logger.exception("Couldn't convert the ETA of %s", request)
            request.fail_early(error)
            return
        self.consumer.qos.increment_eventually()
        timer = self.consumer.timer.call_at(eta, self._due, (request,), priority=6)
        upstream.ETA_TIMER.put(request, timer)
        state.task_scheduled(request)

    def _due(self, request: ItemRequest) -> None:
        self._add(request, ())
        self.consumer.qos.decrement_eventually()

    def withdraw(self) -> list[ItemRequest]:
        """Take out what waits for its batch, as there is a rate limit now."""
        with self._lock:
            return self._buffer.withdraw()

    def admit_again(self, requests: Sequence[ItemRequest]) -> None:
        """Let in at another rate limit what waited at the one before."""
        for request in requests:
            request.limit(is_limited=False)  # what waits for the rate is its batch
            self._add(request, ())
        self._pace.look()

    def _add(self, request: ItemRequest, callbacks: Any) -> None:
        state.task_reserved(request)
        for callback in callbacks or ():
            callback(request)
        group = self._grouping.of(request)
        slots = self._slots_for(request)
        if group.queue not in self._queues:
            self._queues.add(group.queue)
            slots.gathers(group.queue, self.task)
        now = time.monotonic()
        with self._lock:
            full = self._buffer.add(
                request,
                group,
                size_bytes=request.size_bytes,
                now=now,
                cost=request.cost,
                due_at=due_at(request, now) if request.expires else None,
                at_once=group.at_once,
            )
            if self._pace.holds_any and self._buffer.awaits_start(group):
                request.limit(is_limited=True)
        for one in full:
            self._pace.take(one)
        if not slots.backlog(group.queue) and slots.idle(group.queue, self.task.name):
            self._flush_due()
        elif self._timer is None or request.expires:
            self._set_timer()

    def _slots_for(self, request: ItemRequest) -> BatchSlots:
        """Return the slots; the first message tells whose broker this is."""
        if self._slots is None:
            self._slots = slots_for(request.message, self.consumer)
        return self._slots

    def _flush_due(self) -> None:
        while (window := self._take_due()) is not None:
            self._pace.take(window)
        self._set_timer()

    def _take_due(self) -> Window[BatchGroup, ItemRequest] | None:
        slots = self._slots
        if slots is None:
            return None
        with self._lock:
            return self._buffer.next_due(
                time.monotonic(),
                idle=lambda group: slots.idle(group.queue, self.task.name),
                backlog=lambda group: slots.backlog(group.queue),
            )

    def _submit(self, window: Window[BatchGroup, ItemRequest]) -> None:
        """Give a batch its turn; it takes items until `_close` is called."""
        slots = self._slots_for(window.entries[0])
        unit = BatchUnit(
            self.task,
            self.consumer,
            queue=window.group.queue,
            requests=window.entries,
            wait=partial(self._wait, window),
            close=partial(self._close, window),
            slots=PacedSlots(slots, self._pace),
        )
        with self._lock:
            self._units[id(window)] = unit
            self._buffer.has_turn(window, time.monotonic())
        slots.submit(unit)

    def _wait(self, window: Window[BatchGroup, ItemRequest]) -> bool:
        """Hold back a batch that could be fuller in a moment: what ended just now made room."""
        slots = self._slots
        if slots is None or not slots.backlog(window.group.queue):
            return False
        with self._lock:
            if not self._buffer.reopen(window, until=time.monotonic() + PATIENCE_SECONDS):
                return False
            self._units.pop(id(window), None)
        self.consumer.timer.call_after(PATIENCE_SECONDS, self._flush_due)
        return True

    def _close(self, window: Window[BatchGroup, ItemRequest]) -> tuple[Sequence[ItemRequest], str]:
        """Return what goes now, and why: this batch, or a fuller one, in whose place it waits."""
        with self._lock:
            self._units.pop(id(window), None)
            closed = self._chosen(window)
            entries = self._buffer.close(closed)
        if self.task.spread and entries and not closed.is_part:
            self._spread(closed)
        return entries, str(closed.reason or "")

    def _chosen(self, window: Window[BatchGroup, ItemRequest]) -> Window[BatchGroup, ItemRequest]:
        """Return the window that goes now; where that is another, its unit waits for this one."""
        while (chosen := self._buffer.choose(window, time.monotonic())) is not window:
            if (other := self._units.pop(id(chosen), None)) is not None:
                other.stand_for(
                    window.entries,
                    wait=partial(self._wait, window),
                    close=partial(self._close, window),
                )
                self._units[id(window)] = other
                break
            self._buffer.close(chosen)  # nobody waits for it any more: all of it was lost
        return chosen

    def _spread(self, window: Window[BatchGroup, ItemRequest]) -> None:
        """Leave other slots that are idle their parts of a batch, when no more is on its way.

        Not under a rate limit, as each part is a call.
        """
        slots, queue = self._slots_for(window.entries[0]), window.group.queue
        if self._pace.is_limited or slots.backlog(queue):
            return
        most = len(window.entries) // self.task.min_size
        parts = min(1 + slots.idle(queue, self.task.name), most)
        if parts < 2:
            return
        with self._lock:
            rest = self._buffer.split(window, parts, time.monotonic())
        mark([one for part in rest for one in part.entries], State.WAITING)
        for part in rest:
            self._submit(part)

    def _set_timer(self) -> None:
        """Have the buffer asked again when the next batch is due."""
        with self._lock:
            deadline = self._buffer.deadline()
            if deadline is None or deadline >= self._timer_at:
                return
            self._cancel_timer()
            self._timer_at, delay = deadline, max(deadline - time.monotonic(), 0)
            self._timer = self.consumer.timer.call_after(delay, self._on_timer)

    def _on_timer(self) -> None:
        with self._lock:
            self._timer, self._timer_at = None, math.inf
        self._flush_due()

    def _cancel_timer(self) -> None:
        timer, self._timer, self._timer_at = self._timer, None, math.inf
        if timer is not None:
            self.consumer.timer.cancel(timer)
