"""Fetched messages on their way to the consumer, delivered in slices.

A reply of 2,000 messages delivered in one go stalls the event loop for 35 ms, and in the solo pool
keeps a warm shutdown from ending. A slice is at most 64 messages or 5 ms; between slices the loop
does its other work.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator

from routing.redis.values import Arrival

SLICE_MESSAGES = 64
SLICE_SECONDS = 0.005


class Inbox:
    """The arrivals that a channel has not delivered yet; the queues take turns.

    So an urgent message does not stand behind the hundreds of another queue that came before it.
    """

    def __init__(self) -> None:
        # The first queue is the next to have its turn.
        self._lines: dict[str, deque[Arrival]] = {}
        self._length = 0
        self._ends = False

    def __len__(self) -> int:
        return self._length

    def waiting(self, queue: str) -> int:
        """Return how many messages of a queue wait for delivery."""
        return len(self._lines.get(queue, ()))

    def count_full(self, messages: int) -> int:
        """Return of how many queues so many messages, or more, wait for delivery."""
        return sum(len(line) >= messages for line in self._lines.values())

    def add(self, arrivals: Iterable[Arrival]) -> None:
        """Append fetched messages."""
        for arrival in arrivals:
            self._lines.setdefault(arrival.queue, deque()).append(arrival)
            self._length += 1

    def deliver_slice(self, deliver: Callable[[Arrival], None]) -> None:
        """Deliver one slice; what a delivery raises leaves the rest in place."""
        self._ends = False
        until = time.monotonic() + SLICE_SECONDS
        for _ in range(SLICE_MESSAGES):
            if not self._length:
                return
            deliver(self._take_next())
            if self._ends or time.monotonic() >= until:
                return

    def end_slice(self, handed: str) -> None:
        """Let work of this queue, just handed to the pool, be written to it before others come."""
        self._ends = len(self._lines) > (handed in self._lines)

    def _take_next(self) -> Arrival:
        queue = next(iter(self._lines))
        line = self._lines.pop(queue)
        arrival = line.popleft()
        if line:
            self._lines[queue] = line
        self._length -= 1
        return arrival

    def take_all(self, queue: str | None = None) -> Iterator[Arrival]:
        """Remove and yield everything, or all of one queue, oldest of each queue first."""
        names = list(self._lines) if queue is None else [queue]
        for name in names:
            line = self._lines.pop(name, deque())
            self._length -= len(line)
            yield from line
