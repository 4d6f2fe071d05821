"""Messages that are held and wait for a slot: in the inbox, the dispatcher or a batch that gathers.

Not those that wait in the bucket of a task's rate limit: no slot would start them. What has its
turn, and gets no slot for longer than was to be expected, is stuck: another worker may have one
free. Numbers by queue, without I/O; whoever changes the counts holds the lock of the `Holdings`.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from routing.inflight.held import Held, State

#: Work that has its turn and gets no slot for so long is stuck: longer than it is fetched ahead.
STUCK_SECONDS = 0.02


class Ready:
    """How many messages wait, and since when the first of a queue has had its turn."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        #: How many messages have waited and do so no more.
        self.left = 0
        #: Since when a queue has had its turn and got no slot.
        self._turns: dict[str, float] = {}
        #: Since when messages of a queue wait to be delivered at all.
        self._arrived: dict[str, float] = {}
        #: The queues whose bells this process listens to, and the bell that ends that.
        self._listened: frozenset[str] = frozenset()
        self._own_bell = ""
        #: When it last came for a queue by itself.
        self._heard: dict[str, float] = {}
        #: Whether what is stuck may go back; False while the pool would grow for it.
        self.may_return: Callable[[], bool] = lambda: True

    def arrived(self, queues: Iterable[str]) -> None:
        """Note that a message more of each of these waits, to be delivered first."""
        for queue, count in Counter(queues).items():
            self._counts[queue] += count
            self._arrived.setdefault(queue, time.monotonic())

    def remove(self, queue: str, count: int = 1) -> None:
        """Note that one waits no more, or so many."""
        self.left += count
        self._counts[queue] = left = self._counts[queue] - count
        if not left:
            self._turns.pop(queue, None)
            self._arrived.pop(queue, None)

    def limit(self, held: Held, *, is_limited: bool) -> None:
        """Let a message wait for the rate of its task instead of for a slot, or no more."""
        waited, held.is_limited = not (held.state or held.is_limited), is_limited
        self._note(held.queue, int(not (held.state or is_limited)) - int(waited))

    def move(self, messages: Sequence[Held], state: State) -> None:
        """Let messages wait for a slot, or no more; those of one call may be of several queues."""
        more, is_away = dict[str, int](), bool(state)
        for held in messages:
            if not held.is_limited:
                change = bool(held.state) - is_away
                more[held.queue] = more.get(held.queue, 0) + change
            held.state = state
        for queue, change in more.items():
            self._note(queue, change)

    def _note(self, queue: str, more: int) -> None:
        if more < 0:
            self.remove(queue, -more)
        elif more:
            self._counts[queue] += more

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

    def hears(self, queues: Iterable[str], *, own_bell: str = "") -> None:
        """Note that this process comes for queues by itself: it asks them, or listens to them.

        Arguments:
            queues: the queues.
            own_bell: what ends the listening; none where it asks.
        """
        self._listened, self._own_bell = frozenset(queues if own_bell else ()), own_bell
        self._heard |= dict.fromkeys(queues, time.monotonic())

    def own_bell(self, queue: str) -> str:
        """Return the bell that ends the listening to a queue; none when nobody listens to it."""
        return self._own_bell if queue in self._listened else ""

    def has_heard(self, queue: str, since: float) -> bool:
        """Return whether this process may have come for a queue by itself since then."""
        return queue in self._listened or self._heard.get(queue, 0.0) >= since

    def is_stuck(self, queue: str) -> bool:
        """Return whether something of a queue has had its turn for too long."""
        before = time.monotonic() - STUCK_SECONDS
        first = min(self._turns.get(queue, math.inf), self._arrived.get(queue, math.inf))
        return first < before and self._counts[queue] > 0

    def stuck(self) -> list[str]:
        """Return the queues of which something has had its turn for too long."""
        found = [queue for queue in {*self._turns, *self._arrived} if self.is_stuck(queue)]
        return found if found and self.may_return() else []
