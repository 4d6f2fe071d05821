"""What is known about each queue at the broker, from replies and from bells. No I/O."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable

from routing.redis.values import Exchanged

#: What a reply said is no longer known when the loop was held up for so long since its call, such
#: as by a task that ran inside it (solo).
STALE_SECONDS = 0.02


class Sightings:
    """How much waited in each queue when it was last looked at, and what has been heard since."""

    def __init__(self) -> None:
        #: Queues that had nothing at the last look, and whose bells were not heard since.
        self.quiet: set[str] = set()
        #: Whether what was known may be old.
        self.is_stale = False
        self._left: dict[str, int] = {}
        self._known: dict[str, int] = {}
        self._due_at: dict[str, float] = {}
        self._looked_at = -math.inf

    @property
    def since_look(self) -> float:
        """Seconds since all queues were asked."""
        return time.monotonic() - self._looked_at

    @property
    def seconds_to_due(self) -> float:
        """Seconds until the next delayed message is due; infinite for none."""
        return min(self._due_at.values(), default=math.inf) - time.monotonic()

    def take(self, reply: Exchanged, *, age_seconds: float, looked_at_all: bool) -> None:
        """Note what a reply tells about the queues that were asked.

        Arguments:
            reply: the reply to an exchange.
            age_seconds: time since its call.
            looked_at_all: whether all queues were asked.
        """
        now = time.monotonic()
        self.is_stale = age_seconds > STALE_SECONDS
        if looked_at_all:
            self._looked_at = now
            # What had no room was not asked, so nobody knows whether it is empty.
            self.quiet.intersection_update(reply.left)
        self._left = dict(reply.left)
        self._known |= reply.left
        for queue, left in reply.left.items():
            if left:
                self.quiet.discard(queue)
            else:
                self.quiet.add(queue)
            # The server's clock is at least this far from its reply on: nothing is asked too early.
            if due_ms := reply.due_ms.get(queue):
                self._due_at[queue] = now + max(0, due_ms - reply.server_ms) / 1000
            else:
                self._due_at.pop(queue, None)
        self.quiet.difference_update(reply.heard)

    def hear(self, queues: Iterable[str]) -> None:
        """Note that these queues may have something."""
        self.quiet.difference_update(queues)

    def hear_what_is_due(self) -> None:
        """Note the queues whose delayed messages are due by now."""
        now = time.monotonic()
        for queue in [queue for queue, at in self._due_at.items() if at <= now]:
            del self._due_at[queue]
            self.quiet.discard(queue)

    def held_up(self, seconds: float) -> None:
        """Note that the loop stood still: more may be left now than was."""
        if seconds > STALE_SECONDS:
            self.is_stale = True

    def may_have(self, queue: str) -> bool:
        """Return whether a queue may have something, as far as it was looked at and listened to."""
        return queue not in self.quiet

    def left(self, queue: str) -> int:
        """Return how many messages of a queue were left behind at the last look."""
        return self._left.get(queue, 0)

    def known(self, queue: str) -> int:
        """Return the same, from when the queue was last asked."""
        return self._known.get(queue, 0)
