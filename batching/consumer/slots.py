"""The pool's slots as a batch task sees them: who is free, who takes a batch next.

With the engine that is its dispatcher. On a broker that is not ours there is none; then a batch
waits in Celery's own semaphore, and nothing is known about the broker's backlog.
"""

from __future__ import annotations

import logging
from typing import Any, Protocol

from routing.transport.message import EngineMessage
from routing.worker.units import Unit

logger = logging.getLogger(__name__)


class BatchSlots(Protocol):
    """What a batch task asks of the pool."""

    def idle(self, queue: str, task: str) -> bool:
        """Whether a slot is free that nothing waits for and that this task may take."""

    def backlog(self, queue: str) -> bool:
        """Whether more messages of this queue are known to be on their way."""

    def gathers(self, queue: str, task: Any) -> None:
        """Have whole batches of a task fetched from a queue, though no route may lead there."""

    def submit(self, unit: Unit) -> None:
        """Have the unit handed over as soon as a slot is free."""

    def unused(self) -> None:
        """Free the slot of a unit that turned out to have nothing to run."""

    def failed(self, unit: Unit) -> None:
        """Requeue the messages of a unit that the pool refused."""


def slots_for(message: Any, consumer: Any) -> BatchSlots:
    """Return the slots that the work of this message takes."""
    dispatcher = getattr(consumer, "dispatcher", None)
    if dispatcher is None or not isinstance(message, EngineMessage):
        return StockSlots(consumer)
    return DispatcherSlots(dispatcher)


class DispatcherSlots:
    """BatchSlots that the engine's dispatcher shares out."""

    def __init__(self, dispatcher: Any) -> None:
        self.backlog = dispatcher.backlog
        self.submit = dispatcher.submit
        self.unused = dispatcher.unused_slot
        self.failed = dispatcher.failed
        self._idle_slots = dispatcher.idle_slots
        self._dispatcher = dispatcher

    def idle(self, queue: str, task: str) -> bool:
        """Whether a slot is free that nothing waits for and that this task may take."""
        return bool(self._idle_slots(queue, task) > 0)

    def gathers(self, queue: str, task: Any) -> None:
        """Tell those who fetch for the slots; of a keyed task any number may be wanted."""
        if (holdings := self._dispatcher.holdings) is not None:
            is_keyed = task.key is not None
            size = holdings.prefetch.of(queue) if is_keyed else task.max_size
            self._dispatcher.sizes.gathers(queue, size, task.name, is_keyed=is_keyed)


class StockSlots:
    """BatchSlots of a pool without a dispatcher."""

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        semaphore = getattr(consumer.controller, "semaphore", None)
        self._semaphore = semaphore if consumer.pool.uses_semaphore else None

    def idle(self, queue: str, task: str) -> bool:
        """Whether the semaphore has a value left; without one, nobody counts the slots."""
        return self._semaphore is None or self._semaphore.value > 0

    def backlog(self, queue: str) -> bool:
        """Nothing is known about the broker."""
        return False

    def gathers(self, queue: str, task: Any) -> None:
        """What is fetched is Celery's to say."""

    def submit(self, unit: Unit) -> None:
        """Hand over, by the semaphore where the pool has one."""
        if self._semaphore is None:
            unit.hand_over()
        else:
            self._semaphore.acquire(unit.hand_over)

    def unused(self) -> None:
        """Release the semaphore."""
        if self._semaphore is not None:
            self._semaphore.release()

    def failed(self, unit: Unit) -> None:
        """Give the messages back to the broker."""
        self.unused()
        for request in unit.requests:
            request.requeue()
