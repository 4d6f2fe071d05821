"""The rate limit of a batch task, which limits calls: batches wait for it, and go on growing.

The further calls of a search wait for it like any other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from threading import RLock
from typing import Any, Protocol

from batching.consumer.request import ItemRequest
from batching.consumer.sizes import Window
from batching.consumer.slots import BatchSlots
from routing.worker.units import Unit


class Waiter(Protocol):
    """What waits for the rate."""

    awaits_start: bool
    has_start: bool

    @property
    def entries(self) -> Sequence[ItemRequest]:
        """Its items."""


@dataclass(slots=True)
class _Further:
    """A further call of a search."""

    entries: Sequence[ItemRequest]
    awaits_start: bool = False
    has_start: bool = False


class Pace:
    """Gives batches their turns at the rate of their task.

    Arguments:
        consumer: the worker's consumer, which has the buckets of all rates.
        task: name of the task.
        submit: gives a batch its turn for a slot.
        lock: taken while the batches that wait are changed.
    """

    def __init__(
        self,
        consumer: Any,
        task: str,
        *,
        submit: Callable[[Window[Any, ItemRequest]], None],
        lock: RLock,
    ) -> None:
        self._consumer, self._task, self._submit, self._lock = consumer, task, submit, lock
        #: What waits, and what gives it its turn.
        self._waiting: deque[tuple[Waiter, Callable[[], None]]] = deque()
        self._timer: Any = None

    @property
    def is_limited(self) -> bool:
        """Whether there is a rate."""
        return self._bucket is not None

    @property
    def holds_any(self) -> bool:
        """Whether a batch waits for the rate."""
        return bool(self._waiting)

    def take(self, window: Window[Any, ItemRequest]) -> None:
        """Give a batch its turn once its call may begin; it pays for that once."""
        self._take(window, partial(self._submit, window))

    def take_again(self, requests: Sequence[ItemRequest], submit: Callable[[], None]) -> None:
        """Give a further call its turn once it may begin.

        Arguments:
            requests: its items.
            submit: gives it its turn.
        """
        self._take(_Further(requests), submit)

    def _take(self, waiter: Waiter, submit: Callable[[], None]) -> None:
        if waiter.has_start or not (self._waiting or self.is_limited):
            submit()
            return
        with self._lock:
            self._waiting.append((waiter, submit))
            waiter.awaits_start = True
            _limit(waiter, is_limited=True)
        self.look()

    def look(self) -> None:
        """Give turns at the rate that holds now."""
        for submit in self._started():
            submit()

    def clear(self) -> None:
        """Forget what waits."""
        with self._lock:
            self._waiting.clear()
            self._cancel()

    @property
    def _bucket(self) -> Any:
        consumer = self._consumer
        return None if consumer.disable_rate_limits else consumer.task_buckets[self._task]

    def _started(self) -> list[Callable[[], None]]:
        """Take out what may begin."""
        started = []
        with self._lock:
            self._cancel()
            bucket = self._bucket
            while self._waiting:
                waiter, submit = self._waiting[0]
                # All of its items may have been taken back meanwhile.
                if waiter.entries and bucket is not None and not bucket.can_consume(1):
                    seconds = bucket.expected_time(1)
                    self._timer = self._consumer.timer.call_after(seconds, self._on_time)
                    break
                self._waiting.popleft()
                waiter.awaits_start, waiter.has_start = False, True
                if waiter.entries:
                    _limit(waiter, is_limited=False)
                    started.append(submit)
        return started

    def _on_time(self) -> None:
        with self._lock:
            self._timer = None  # under gevent, cancelling it would end what looks now
        self.look()

    def _cancel(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            self._consumer.timer.cancel(timer)


def _limit(waiter: Waiter, *, is_limited: bool) -> None:
    for request in waiter.entries:
        request.limit(is_limited=is_limited)


class PacedSlots:
    """The slots of a task whose calls have a rate.

    Arguments:
        slots: those of the pool.
        pace: that rate.
    """

    def __init__(self, slots: BatchSlots, pace: Pace) -> None:
        self.unused, self.failed, self.again = slots.unused, slots.failed, slots.again
        self._soon, self._pace = slots.soon, pace

    def call_again(self, unit: Unit) -> None:
        """Submit a further call of a search when it may begin; from any thread."""
        submit = partial(self.again, unit)
        self._soon(partial(self._pace.take_again, unit.requests, submit))
