"""How many messages of each queue this worker can start soon: what it fetches, within prefetch.

Prefetch is a cap, not a target: what waits in a worker whose slots are busy could run elsewhere,
and holds up what is more urgent. So work is fetched for slots that are free, or are expected to be
within a few milliseconds, as far as it was measured what the work takes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping

from routing.inflight.prefetch import Room
from routing.inflight.ready import STUCK_SECONDS, Ready
from routing.worker.fairness import startable
from routing.worker.scheduler import Scheduler

#: Work is fetched for a slot so long before it is free: some round trips, during which it would
#: have nothing to do.
AHEAD_SECONDS = STUCK_SECONDS / 2

#: What it takes to fetch and deliver one message; a batch of 500 has to be fetched earlier.
ITEM_SECONDS = 50e-6


class Demand:
    """What the slots of one worker ask for.

    Arguments:
        scheduler: knows what runs and what it takes, and whose turn it is.
        free: returns the slots that are free, or would be added to the pool.
        unit_sizes: how many messages of a queue go into one unit, where that is not one.
        ahead_seconds: for how long before a slot is free work is fetched for it.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        free: Callable[[], int],
        unit_sizes: Mapping[str, int],
        ahead_seconds: float = AHEAD_SECONDS,
    ) -> None:
        self._running, self._times = scheduler.running, scheduler.times
        self._rules, self.order = scheduler.rules, scheduler.order
        self._free, self._unit_sizes = free, unit_sizes
        self._ahead_seconds = ahead_seconds

    def unit_size(self, queue: str) -> int:
        """Return how many messages of a queue go into one call."""
        return self._unit_sizes.get(queue, 1)

    def rooms(self, queues: Collection[str], ready: Ready) -> tuple[dict[str, Room], int]:
        """Return the room of each of these queues, and for how many slots work is to be fetched.

        Arguments:
            queues: the queues that are consumed.
            ready: what waits for a slot already.
        """
        staying = self._running.staying(self._ahead_seconds)
        soon = self._free() + sum(self._running.counts.values()) - sum(staying.values())
        taken = self._taken_by_what_waits(queues, ready)
        places = max(0, soon - sum(taken.values()))
        rules, occupied = self._rules(), staying + taken
        rooms = {}
        for queue in queues:
            free = max(0, places + taken[queue])
            if rules:
                own = {**occupied, queue: staying[queue]}
                free = startable(
                    queue, rules, free=free, running=own, seconds=self._times.queue_peak(queue)
                )
            size = self.unit_size(queue)
            per_slot = self._units_per_slot(queue)
            count = free * per_slot * size - ready.count(queue)
            rooms[queue] = Room(count, free * per_slot * size, size if per_slot == 1 else 0)
        return rooms, places

    def _taken_by_what_waits(self, queues: Iterable[str], ready: Ready) -> Counter[str]:
        """Return how many slots will be taken, and kept, by what waits."""
        taken: Counter[str] = Counter()
        for queue in queues:
            if (waiting := ready.count(queue)) and self._units_per_slot(queue) == 1:
                taken[queue] = -(-waiting // self.unit_size(queue))
        return taken

    def _units_per_slot(self, queue: str) -> int:
        """Return how many units of a queue one slot can start soon: several of short ones."""
        mean = self._times.mean(queue)
        if mean is None:
            return 1
        ahead = self._ahead_seconds
        if (size := self.unit_size(queue)) > 1 and ahead:
            ahead = max(ahead, size * ITEM_SECONDS)
        return 1 + int(ahead / max(mean, 1e-6))
