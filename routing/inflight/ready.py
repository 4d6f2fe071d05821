"""Messages that are held and wait for a slot: in the inbox, the dispatcher or a batch that gathers.

Not those that wait in the bucket of a task's rate limit: no slot would start them. What has its
turn, and gets no slot for longer than was to be expected, is stuck: another worker may have one
free. Numbers by queue, without I/O; whoever changes them holds the lock of the `Holdings`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from routing.inflight.held import Held, State

#: Work that has its turn and gets no slot for so long is stuck: longer than it is fetched ahead.
STUCK_SECONDS = 0.02


class Ready:
    """How many messages wait, and since when the first of a queue has had its turn."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        #: Since when a queue has had its turn and got no slot.
        self._turns: dict[str, float] = {}
        #: Since when messages of a queue wait to be delivered at all.
        self._arrived: dict[str, float] = {}
        #: Whether what is stuck may go back; False while the pool would grow for it.
        self.may_return: Callable[[], bool] = lambda: True

    def arrived(self, queue: str) -> None:
        """Note that one message more waits, to be delivered first."""
        self._counts[queue] += 1
        self._arrived.setdefault(queue, time.monotonic())

    def remove(self, queue: str) -> None:
        """Note that one waits no more."""
        self._counts[queue] -= 1

    def change(self, held: Held, state: State, is_limited: bool) -> None:
        """Let a message wait for a slot, or no more."""
        was_ready = held.is_ready
        held.state, held.is_limited = state, is_limited
        if was_ready is not held.is_ready:
            self._counts[held.queue] += -1 if was_ready else 1

    def count(self, queue: str) -> int:
        """Return how many messages of a queue wait."""
        return self._counts[queue]

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return not any(self._counts.values())

    def delivered(self) -> None:
        """Note that all that arrived was delivered."""
        self._arrived.clear()

    def has_turn(self, queue: str) -> None:
        """Note that work of a queue waits for nothing but a slot."""
        self._turns.setdefault(queue, time.monotonic())

    def handed(self, queue: str, *, more: bool) -> None:
        """Note that a queue got a slot, and whether more of it has its turn."""
        if more:
            self._turns[queue] = time.monotonic()
        else:
            self._turns.pop(queue, None)

    def stuck(self) -> list[str]:
        """Return the queues of which something has had its turn for too long."""
        before = time.monotonic() - STUCK_SECONDS
        since = [*self._turns.items(), *self._arrived.items()]
        found = {queue for queue, at in since if at < before and self._counts[queue] > 0}
        return list(found) if found and self.may_return() else []
