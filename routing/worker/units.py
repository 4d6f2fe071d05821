"""Units of work: what takes one slot of the pool, and what such work is gathered in."""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from celery.exceptions import TaskRevokedError


class Unit(Protocol):
    """Work that takes one slot of the pool."""

    @property
    def queue(self) -> str:
        """The queue that the work came from."""

    @property
    def requests(self) -> Sequence[Any]:
        """The requests that the unit consists of; more may join until it is handed over."""

    def hand_over(self) -> None:
        """Give the work to the pool; a slot has been taken for it."""


class UnitSource(Protocol):
    """Something that gathers work and can make a unit of it when asked."""

    def slot_idle(self) -> None:
        """Submit what has been gathered, if that is wanted: a slot has nothing to do."""

    def waiting(self) -> Mapping[str, int]:
        """Return how much of each queue has been gathered that still waits for company."""

    def drop_lost(self) -> None:
        """Forget what is not held any more."""

    def clear(self) -> None:
        """Forget everything; the messages are being requeued."""


class Owner(Protocol):
    """The dispatcher, as a unit sees it."""

    @property
    def pool(self) -> Any:
        """The worker's pool."""

    def unused_slot(self) -> None:
        """Release the slot of a unit that turned out to have nothing to run."""

    def failed(self, unit: Unit) -> None:
        """Requeue a unit that the pool did not take."""


class RequestUnit:
    """One request as a unit of work."""

    __slots__ = ("_dispatcher", "queue", "requests")

    def __init__(self, dispatcher: Owner, request: Any) -> None:
        self._dispatcher = dispatcher
        self.requests = (request,)
        self.queue = request.delivery_info.get("routing_key") or ""

    @property
    def task(self) -> str:
        """Name of its task."""
        (request,) = self.requests
        return str(request.name)

    def hand_over(self) -> None:
        """Send the request to the pool, unless it was revoked meanwhile."""
        dispatcher, (request,) = self._dispatcher, self.requests
        if request.is_void():
            dispatcher.unused_slot()
            return
        request.pool = dispatcher.pool
        try:
            accepted = request.execute_using_pool(dispatcher.pool)
        except TaskRevokedError:
            dispatcher.unused_slot()
            return
        if accepted is None and dispatcher.pool.uses_semaphore:
            dispatcher.failed(self)


class WaitingUnits:
    """Units that wait for their turn, by queue; each queue's in order of arrival."""

    def __init__(self) -> None:
        self._units: dict[str, deque[Unit]] = {}
        #: What gathers work for further units.
        self.sources: list[UnitSource] = []

    def __len__(self) -> int:
        return sum(map(len, self._units.values()))

    def __bool__(self) -> bool:
        return bool(self._units)

    def queues(self) -> Iterable[str]:
        """Return the queues that have units."""
        return self._units

    def count(self, queue: str) -> int:
        """Return how many units a queue has."""
        return len(self._units.get(queue, ()))

    def first(self, queue: str) -> Unit:
        """Return the first unit of a queue that has one."""
        return self._units[queue][0]

    def drop_lost(self) -> None:
        """Forget what is not held any more."""
        for source in tuple(self.sources):
            source.drop_lost()
        for queue in list(self._units):
            kept = deque(
                unit
                for unit in self._units[queue]
                if not all(request.is_lost() for request in unit.requests)
            )
            self._units[queue] = kept
            if not kept:
                del self._units[queue]

    def add(self, unit: Unit) -> None:
        """Let a unit wait."""
        self._units.setdefault(unit.queue, deque()).append(unit)

    def take(self, queue: str) -> Unit:
        """Return the first unit of a queue, which waits no more."""
        units = self._units[queue]
        unit = units.popleft()
        if not units:
            del self._units[queue]
        return unit

    def withdraw(self, task: str) -> list[Any]:
        """Take out the requests of a task that are units of their own; in order of arrival."""
        requests: list[Any] = []
        for queue, units in list(self._units.items()):
            ours = [unit for unit in units if isinstance(unit, RequestUnit) and unit.task == task]
            requests += [request for unit in ours for request in unit.requests]
            if len(ours) == len(units):
                del self._units[queue]
            elif ours:
                self._units[queue] = deque(unit for unit in units if unit not in ours)
        return requests

    def buffered(self) -> Mapping[str, int]:
        """Return how many messages of each queue wait in a source for the rest of their batch."""
        total: dict[str, int] = {}
        for source in self.sources:
            for queue, count in source.waiting().items():
                total[queue] = total.get(queue, 0) + count
        return total

    def clear(self) -> None:
        """Forget them all, and the sources."""
        self._units.clear()
        for source in self.sources:
            source.clear()
        self.sources.clear()


def task_of(unit: Unit) -> str:
    """Return the name of a unit's task."""
    return str(unit.requests[0].name) if unit.requests else ""


def can_travel(request: Any) -> bool:
    """Whether what a pool process needs of a request can be pickled at all."""
    try:
        pickle.dumps((request.request_dict, request.body))
    except Exception:
        return False
    return True
