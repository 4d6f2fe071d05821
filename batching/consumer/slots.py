"""The pool's slots as a batch task sees them: who is free, who takes a batch next.

With the engine that is its dispatcher. On a broker that is not ours there is none; then a batch
waits in Celery's own semaphore or, in pools without one, until a slot is counted free. Nothing is
known about the broker's backlog.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from billiard.common import TERM_SIGNAL
from celery.concurrency.solo import TaskPool as SoloPool

from routing.transport.message import EngineMessage
from routing.worker.slots import CountedSlots
from routing.worker.units import Unit

logger = logging.getLogger(__name__)


class BatchSlots(Protocol):
    """What a batch task asks of the pool."""

    def idle(self, queue: str, task: str) -> int:
        """How many slots are free that nothing waits for; none where this task may take none."""

    def backlog(self, queue: str) -> bool:
        """Whether more messages of this queue are known to be on their way."""

    def gathers(self, queue: str, task: Any) -> None:
        """Have whole batches of a task fetched from a queue, though no route may lead there."""

    def submit(self, unit: Unit) -> None:
        """Have the unit handed over as soon as a slot is free."""

    def again(self, unit: Unit) -> None:
        """Submit a further unit of a call that is over; from any thread."""

    def soon(self, callback: Callable[[], None]) -> None:
        """Call back soon in the consumer's loop; from any thread."""

    def unused(self) -> None:
        """Free the slot of a unit that turned out to have nothing to run."""

    def failed(self, unit: Unit) -> None:
        """Requeue the messages of a unit that the pool refused."""


def slots_for(message: Any, consumer: Any) -> BatchSlots:
    """Return the slots that the work of this message takes."""
    dispatcher = getattr(consumer, "dispatcher", None)
    if dispatcher is not None and isinstance(message, EngineMessage):
        return DispatcherSlots(dispatcher)
    if consumer.pool.uses_semaphore:
        return PreforkSlots(consumer)
    return _counted_slots(consumer)


def end_call(pool: Any, pid: int, signal: Any = None) -> bool:
    """End what a pool process runs; False in a pool that cannot, where it runs to its end."""
    try:
        pool.terminate_job(pid, signal or TERM_SIGNAL)
    except NotImplementedError:
        logger.info("a batch runs to its end: this pool cannot stop it")
        return False
    return True


def count_slots(consumer: Any) -> None:
    """Count from now on what is in the pool of a worker without a dispatcher."""
    if not consumer.pool.uses_semaphore:
        _counted_slots(consumer)


class DispatcherSlots:
    """BatchSlots that the engine's dispatcher shares out."""

    def __init__(self, dispatcher: Any) -> None:
        self.backlog = dispatcher.backlog
        self.submit = dispatcher.submit
        self.unused = dispatcher.unused_slot
        self.failed = dispatcher.failed
        self.soon = dispatcher.soon
        self.idle = dispatcher.idle_slots
        self._dispatcher = dispatcher

    def again(self, unit: Unit) -> None:
        """Submit it soon in the consumer's loop; what is not taken goes back to the broker."""
        self._dispatcher.soon(partial(self._again, unit))

    def _again(self, unit: Unit) -> None:
        if not self.submit(unit):  # the connection is lost, and nobody hands over now
            unit.go_back()  # type: ignore[attr-defined]

    def gathers(self, queue: str, task: Any) -> None:
        """Tell those who fetch for the slots; of a keyed task any number may be wanted."""
        if (holdings := self._dispatcher.holdings) is not None:
            is_keyed = task.key is not None
            size = holdings.prefetch.of(queue) if is_keyed else task.max_size
            self._dispatcher.sizes.gathers(queue, size, task.name, is_keyed=is_keyed)


class StockSlots:
    """Slots of a pool without a dispatcher: nothing is known about the broker."""

    def __init__(self, consumer: Any) -> None:
        self.soon = partial(_soon, consumer)

    def submit(self, unit: Unit) -> None:
        """Hand over when a slot is free."""
        raise NotImplementedError

    def again(self, unit: Unit) -> None:
        """Submit it soon in the consumer's loop."""
        self.soon(partial(self.submit, unit))

    def backlog(self, queue: str) -> bool:
        """Nothing is known about the broker."""
        return False

    def gathers(self, queue: str, task: Any) -> None:
        """What is fetched is Celery's to say."""

    def unused(self) -> None:
        """Free the slot of a unit that turned out to have nothing to run."""

    def failed(self, unit: Unit) -> None:
        """Give the messages back to the broker."""
        self.unused()
        for request in unit.requests:
            request.requeue()


class PreforkSlots(StockSlots):
    """Those of the prefork pool; without an event loop nobody counts them, and it waits itself."""

    def __init__(self, consumer: Any) -> None:
        super().__init__(consumer)
        self._semaphore = consumer.controller.semaphore

    def idle(self, queue: str, task: str) -> int:
        """Return what is left of the semaphore."""
        return 0 if self._semaphore is None else int(max(0, self._semaphore.value))

    def submit(self, unit: Unit) -> None:
        """Hand over when the semaphore lets it."""
        if self._semaphore is None:
            unit.hand_over()
        else:
            self._semaphore.acquire(unit.hand_over)

    def unused(self) -> None:
        """Release the semaphore."""
        if self._semaphore is not None:
            self._semaphore.release()


class PoolSlots(StockSlots):
    """Those of the other pools, which take any number of calls: the calls in them are counted.

    In the solo pool no slot is ever idle: each message comes when the one before has run, so
    batches wait for company there for as long as they may.
    """

    def __init__(self, consumer: Any) -> None:
        super().__init__(consumer)
        self.connection = consumer.connection
        self._waiting: deque[Unit] = deque()
        self._lock = threading.Lock()
        self._is_solo = isinstance(consumer.pool, SoloPool)
        self._slots = CountedSlots(
            consumer.pool,
            on_free=self._hand_over,
            on_enter=lambda: _nothing,
            soon=self.soon,
        )

    def idle(self, queue: str, task: str) -> int:
        """Return how many slots are free that nothing waits for."""
        free = 0 if self._is_solo else self._slots.free()
        return max(0, free - len(self._waiting))

    def submit(self, unit: Unit) -> None:
        """Hand over when a slot is free."""
        self._waiting.append(unit)
        self._hand_over()

    def begin_anew(self, consumer: Any) -> None:
        """Forget what waits: it came over another connection, and comes again."""
        self.connection = consumer.connection
        self._waiting.clear()

    def _hand_over(self) -> None:
        while (unit := self._next()) is not None:
            try:
                unit.hand_over()
            except BaseException:
                self._slots.release()
                raise

    def _next(self) -> Unit | None:
        """Take the unit whose turn it is, and its slot; the timer of some pools is a thread."""
        with self._lock:
            if not self._waiting or not self._slots.free():
                return None
            self._slots.acquire()
            return self._waiting.popleft()

    def unused(self) -> None:
        """Return the slot."""
        self._slots.release()


#: Those of a pool are counted once, for all tasks and connections.
_COUNTED: WeakKeyDictionary[Any, PoolSlots] = WeakKeyDictionary()


def _counted_slots(consumer: Any) -> PoolSlots:
    slots = _COUNTED.get(consumer.pool)
    if slots is None:
        slots = _COUNTED[consumer.pool] = PoolSlots(consumer)
    elif slots.connection is not consumer.connection:
        slots.begin_anew(consumer)
    return slots


def _soon(consumer: Any, callback: Callable[[], None]) -> None:
    """Run a callback soon in the consumer's loop; safe from any thread."""
    if consumer.hub is None:
        consumer.timer.call_after(0, callback)
    else:
        consumer.hub.call_soon(callback)


def _nothing(ran_seconds: float | None = None) -> None:
    return None
