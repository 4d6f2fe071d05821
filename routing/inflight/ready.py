"""Messages that are held and wait for a slot: in the inbox, the dispatcher or a batch that gathers.

Not those that wait in the bucket of a task's rate limit: no slot would start them. What has its
turn, and gets no slot for longer than was to be expected, is stuck: another worker may have one
free. No I/O, no lock: each change is one step of a dictionary.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

#: Work that has its turn and gets no slot for so long is stuck: longer than it is fetched ahead.
STUCK_SECONDS = 0.02


class Ready:
    """Tags of waiting messages by queue, each with the time since when it has had its turn."""

    def __init__(self) -> None:
        self._since: dict[str, dict[str, float]] = {}
        #: When work of a queue was last handed to the pool.
        self._handed: dict[str, float] = {}
        #: Whether what is stuck may go back; False while the pool would grow for it.
        self.may_return: Callable[[], bool] = lambda: True

    def add(self, queue: str, tag: str, *, has_turn: bool = True) -> None:
        """Note that a message waits: for its delivery or a slot, or for the rest of its batch."""
        self._since.setdefault(queue, {})[tag] = time.monotonic() if has_turn else math.inf

    def remove(self, queue: str, tag: str) -> None:
        """Note that a message does not wait for a slot any more, or not yet."""
        if waiting := self._since.get(queue):
            waiting.pop(tag, None)

    def handed(self, queue: str, tag: str) -> None:
        """Note that a message has got its slot."""
        self.remove(queue, tag)
        self._handed[queue] = time.monotonic()

    def count(self, queue: str) -> int:
        """Return how many messages of a queue wait for a slot."""
        return len(self._since.get(queue, ()))

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits for a slot."""
        return not any(self._since.values())

    def stuck(self) -> list[str]:
        """Return the queues of which something has had its turn for too long."""
        before = time.monotonic() - STUCK_SECONDS
        found = [
            queue
            for queue, waiting in list(self._since.items())
            if waiting
            and self._handed.get(queue, 0.0) < before
            and min(dict(waiting).values()) < before
        ]
        return found if found and self.may_return() else []

    def tags(self, queue: str) -> list[str]:
        """Return what waits of a queue, also what only gathers: else it would pass the rest."""
        return list(self._since.get(queue, ()))
