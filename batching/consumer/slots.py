"""The pool's slots as a batch task sees them: who is free, who takes a batch next.

With the engine that is its dispatcher. On a broker that is not ours there is none; then a batch
waits in Celery's own semaphore, and nothing is known about the broker's backlog.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from batching.consumer.request import ItemRequest
from batching.consumer.unit import BatchUnit
from routing.transport.message import EngineMessage

logger = logging.getLogger(__name__)


class Slots(Protocol):
    """What a batch task asks of the pool."""

    def idle(self, queue: str) -> bool:
        """Whether a slot is free that nothing waits for and that this queue may take."""

    def backlog(self, queue: str) -> bool:
        """Whether more messages of this queue are known to be on their way."""

    def submit(self, unit: BatchUnit) -> None:
        """Have the unit handed over as soon as a slot is free."""

    def unused(self) -> None:
        """Free the slot of a unit that turned out to have nothing to run."""

    def failed(self, unit: BatchUnit) -> None:
        """Give back the messages of a unit that the pool refused."""

    def collect_acks(self, requests: Sequence[ItemRequest]) -> AbstractContextManager[None]:
        """Acknowledge what ends within together, where that is cheaper."""


def slots_for(message: Any, consumer: Any) -> Slots:
    """Return the slots that the work of this message takes."""
    dispatcher = getattr(consumer, "dispatcher", None)
    if dispatcher is None or not isinstance(message, EngineMessage):
        return StockSlots(consumer)
    return DispatcherSlots(dispatcher)


class DispatcherSlots:
    """Slots that the engine's dispatcher shares out."""

    def __init__(self, dispatcher: Any) -> None:
        self.backlog = dispatcher.backlog
        self.submit = dispatcher.submit
        self.unused = dispatcher.unused_slot
        self.failed = dispatcher.failed
        self._idle_slots = dispatcher.idle_slots

    def idle(self, queue: str) -> bool:
        """Whether a slot is free that nothing waits for and that this queue may take."""
        return bool(self._idle_slots(queue) > 0)

    @contextmanager
    def collect_acks(self, requests: Sequence[ItemRequest]) -> Iterator[None]:
        """Acknowledge all at once; also in a warm shutdown, when no loop runs any more."""
        messages: list[EngineMessage] = []
        for request in requests:
            request.acks = messages
        try:
            yield
        finally:
            for request in requests:
                request.acks = None
            if messages:
                _ack_all(messages)


class StockSlots:
    """Slots of a pool without a dispatcher."""

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        semaphore = getattr(consumer.controller, "semaphore", None)
        self._semaphore = semaphore if consumer.pool.uses_semaphore else None

    def idle(self, queue: str) -> bool:
        """Whether the semaphore has a value left; without one, nobody counts the slots."""
        return self._semaphore is None or self._semaphore.value > 0

    def backlog(self, queue: str) -> bool:
        """Nothing is known about the broker."""
        return False

    def submit(self, unit: BatchUnit) -> None:
        """Hand over, by the semaphore where the pool has one."""
        if self._semaphore is None:
            unit.hand_over()
        else:
            self._semaphore.acquire(unit.hand_over)

    def unused(self) -> None:
        """Release the semaphore."""
        if self._semaphore is not None:
            self._semaphore.release()

    def failed(self, unit: BatchUnit) -> None:
        """Give the messages back to the broker."""
        self.unused()
        for request in unit.requests:
            request.give_back()

    @contextmanager
    def collect_acks(self, requests: Sequence[ItemRequest]) -> Iterator[None]:
        """Leave each to itself: these acknowledgements belong to Celery and its transports."""
        yield


def _ack_all(messages: Sequence[EngineMessage]) -> None:
    """End the messages of one batch in one step; they came over one channel."""
    channel = messages[0].channel
    ended = []
    for message in messages:
        if (death := message.death) is not None:
            channel.bury(message.delivery_tag, death)
        else:
            ended.append((message.delivery_tag, message.ending or "done"))
    if ended:
        channel.end_all(ended)
