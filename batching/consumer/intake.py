"""How a worker takes in the messages of a batch task: Celery's `Task.Strategy` hook.

For each message it does what `celery.worker.strategy.default` does (decode, revoked, received,
ETA, rate limit) and then, instead of handing the request to the pool, adds it to the task's
buffer. The buffer is asked with each message, when a slot falls idle, and when its oldest item has
waited long enough, what gets its turn for a slot. A batch that has its turn goes on growing until
the slot is there.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from types import MethodType
from typing import Any, NamedTuple

from celery import signals
from celery.app import trace
from celery.exceptions import InvalidTaskError
from celery.utils.time import timezone
from celery.worker import state
from celery.worker.strategy import hybrid_to_proto2, proto1_to_proto2
from kombu.asynchronous.timer import to_timestamp

from batching.consumer.request import ItemRequest, wants_task_events
from batching.consumer.slots import BatchSlots, slots_for
from batching.consumer.unit import BatchUnit
from batching.consumer.window import Buffer, Window, limits_of
from routing import upstream

logger = logging.getLogger(__name__)


#: A batch lets its slot wait that long, once, for items that the broker is known to have: a few
#: round trips. When slots fall free together, what waits here is not enough for all of them.
PATIENCE_SECONDS = 0.01


class BatchGroup(NamedTuple):
    """What must be alike in one call."""

    queue: str
    key: Any
    # A batch has one pair of time limits, so messages with limits of their own do not mix.
    time_limits: tuple[float | None, float | None]


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
    return intake.receive


class Intake:
    """Takes in one task's messages, and sends batches on their way."""

    def __init__(self, task: Any, app: Any, consumer: Any) -> None:
        self.task = task
        self.app = app
        self.consumer = consumer
        self._utc = app.uses_utc_timezone()
        self._slots: BatchSlots | None = None
        #: The queues that items have come from.
        self._queues: set[str] = set()
        self._buffer: Buffer[BatchGroup, ItemRequest] = Buffer(limits_of(task))
        self._timer: Any = None
        # The timer of some pools is a thread.
        self._lock = threading.RLock()
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
        self._log_received(request)
        if request.is_gone():
            return
        self._announce(request)
        if request.eta:
            self._schedule(request)
            return
        self._admit(request, callbacks)

    def slot_idle(self) -> None:
        """Send what may go now that a slot is free."""
        self._flush_due()

    def waiting(self) -> Counter[str]:
        """Return how many items of each queue wait in a batch that others may still join."""
        count: Counter[str] = Counter()
        with self._lock:
            for group, size in self._buffer.sizes():
                count[group.queue] += size
        return count

    def drop_lost(self) -> None:
        """Forget items whose messages are not held any more."""
        with self._lock:
            self._buffer.drop(lambda request: request.is_lost(), lambda one: one.size_bytes)

    def clear(self) -> None:
        """Forget what waits: its messages are requeued by whoever delivered them."""
        with self._lock:
            self._cancel_timer()
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

    def _log_received(self, request: ItemRequest) -> None:
        if not trace.logger.isEnabledFor(logging.INFO):
            return
        context = {
            "id": request.id,
            "name": request.name,
            "args": request.argsrepr,
            "kwargs": request.kwargsrepr,
            "eta": request.eta,
        }
        logger.info(trace.LOG_RECEIVED, context, extra={"data": context})

    def _announce(self, request: ItemRequest) -> None:
        signals.task_received.send(sender=self.consumer, request=request)
        if not wants_task_events(self._eventer):
            return
        self._eventer.send(
            "task-received",
            uuid=request.id,
            name=request.name,
            args=request.argsrepr,
            kwargs=request.kwargsrepr,
            root_id=request.root_id,
            parent_id=request.parent_id,
            retries=request.request_dict.get("retries", 0),
            eta=request.eta and request.eta.isoformat(),
            expires=request.expires and request.expires.isoformat(),
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
        self._admit(request, ())
        self.consumer.qos.decrement_eventually()

    def _admit(self, request: ItemRequest, callbacks: Any) -> None:
        """Let an item into the buffer, at the task's rate limit."""
        bucket = None
        if not self.consumer.disable_rate_limits:
            bucket = self.consumer.task_buckets[self.task.name]
        if bucket is None:
            self._add(request, callbacks)
            return
        waited_for = bool(bucket.contents)
        bucket.add((request, 1))
        if not waited_for:  # else a timer runs already: one for each would starve all others
            self._drain(bucket)

    def withdraw(self) -> list[ItemRequest]:
        """Take out what waits for its batch, as there is a rate limit now."""
        with self._lock:
            return self._buffer.withdraw()

    def admit_again(self, requests: Sequence[ItemRequest]) -> None:
        """Let in at another rate limit what waited at the one before."""
        for request in requests:
            self._admit(request, ())

    def _drain(self, bucket: Any) -> None:
        while bucket.contents:
            request, tokens = bucket.pop()
            if not bucket.can_consume(tokens):
                bucket.contents.appendleft((request, tokens))
                self.consumer.timer.call_after(bucket.expected_time(tokens), self._drain, (bucket,))
                return
            self._add(request, ())

    def _add(self, request: ItemRequest, callbacks: Any) -> None:
        state.task_reserved(request)
        for callback in callbacks or ():
            callback(request)
        group = self._group(request)
        slots = self._slots_for(request)
        if group.queue not in self._queues:
            self._queues.add(group.queue)
            slots.gathers(group.queue, self.task)
        with self._lock:
            window = self._buffer.open_window(group)
            full = self._buffer.add(
                request, group, size_bytes=request.size_bytes, now=time.monotonic()
            )
        joined = window if window is not None and window.entries[-1] is request else None
        request.waits(has_turn=joined is not None and joined.reason is not None)
        for one in full:
            self._submit(one)
        if not slots.backlog(group.queue) and slots.idle(group.queue, self.task.name):
            self._flush_due()
        elif self._timer is None:
            self._set_timer()

    def _slots_for(self, request: ItemRequest) -> BatchSlots:
        """Return the slots; the first message tells whose broker this is."""
        if self._slots is None:
            self._slots = slots_for(request.message, self.consumer)
        return self._slots

    def _group(self, request: ItemRequest) -> BatchGroup:
        return BatchGroup(request.queue, self._key(request), tuple(request.time_limits))

    def _key(self, request: ItemRequest) -> Any:
        if self.task.key is None:
            return None
        try:
            key = self.task.key(*request.args, **request.kwargs)
            hash(key)
        except Exception as error:
            # The item fails by itself in the pool, where its failure is stored as any other's.
            request.invalid = f"the key function raised {error!r}"
            return InvalidTaskError
        return key

    def _flush_due(self) -> None:
        while (window := self._take_due()) is not None:
            self._submit(window)
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
        for request in window.entries:
            request.waits(has_turn=True)
        slots = self._slots_for(window.entries[0])
        slots.submit(
            BatchUnit(
                self.task,
                self.consumer,
                queue=window.group.queue,
                requests=window.entries,
                wait=partial(self._wait, window),
                close=partial(self._close, window),
                slots=slots,
            )
        )

    def _wait(self, window: Window[BatchGroup, ItemRequest]) -> bool:
        """Hold back a batch that could be fuller in a moment: what ended just now made room."""
        slots = self._slots
        if slots is None or not slots.backlog(window.group.queue):
            return False
        with self._lock:
            if not self._buffer.reopen(window, until=time.monotonic() + PATIENCE_SECONDS):
                return False
        self.consumer.timer.call_after(PATIENCE_SECONDS, self._flush_due)
        return True

    def _close(self, window: Window[BatchGroup, ItemRequest]) -> list[ItemRequest]:
        with self._lock:
            return self._buffer.close(window)

    def _set_timer(self) -> None:
        """Make sure that a timer runs while something waits."""
        if self._timer is not None:
            return
        with self._lock:
            deadline = self._buffer.deadline()
            if self._timer is None and deadline is not None:
                delay = max(deadline - time.monotonic(), 0)
                self._timer = self.consumer.timer.call_after(delay, self._on_timer)

    def _on_timer(self) -> None:
        with self._lock:
            self._timer = None
        self._flush_due()

    def _cancel_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            self.consumer.timer.cancel(timer)
