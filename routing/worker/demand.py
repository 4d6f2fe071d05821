"""How many messages of each queue this worker can start soon: what it fetches, within prefetch.

Prefetch is a cap, not a target: what waits in a worker whose slots are busy could run elsewhere,
and holds up what is more urgent. So work is fetched for slots that are free, or are expected to be
within a few milliseconds, as far as it was measured what the work takes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

from routing.inflight.prefetch import Room
from routing.inflight.ready import Ready
from routing.worker.fairness import startable
from routing.worker.scheduler import AHEAD_SECONDS, Scheduler
from routing.worker.unit_sizes import UnitSizes

#: What it takes to fetch and deliver one message; a batch of 500 has to be fetched earlier.
ITEM_SECONDS = 50e-6


class Demand:
    """What the slots of one worker ask for.

    Arguments:
        scheduler: knows what runs and what it takes, and whose turn it is.
        free: returns the slots that are free, or would be added to the pool.
        has_more: returns whether more of a queue is known to wait at the broker.
        sizes: how many messages a slot takes.
        gathered: returns how many messages of each queue wait in a batch that others may join.
        limits_text: what a fetch says of the limits of tasks and keys.
        ahead_seconds: for how long before a slot is free work is fetched for it.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        free: Callable[[], int],
        has_more: Callable[[str], bool],
        sizes: UnitSizes,
        gathered: Callable[[], Mapping[str, int]] = dict,
        limits_text: str = "",
        ahead_seconds: float = AHEAD_SECONDS,
    ) -> None:
        self._running, self._times = scheduler.running, scheduler.times
        self._rules, self.order = scheduler.rules, scheduler.order
        self._free, self._has_more, self._gathered = free, has_more, gathered
        self.sizes, self.call_size, self.limits_text = sizes, sizes.of_call, limits_text
        self._ahead_seconds = ahead_seconds

    def rooms(self, queues: Collection[str], ready: Ready) -> tuple[dict[str, Room], int]:
        """Return the room of each of these queues, and for how many slots work is to be fetched.

        What waits here takes slots from queues that have their turns later, and from no others.

        Arguments:
            queues: the queues that are consumed.
            ready: what waits for a slot already.
        """
        counts, occupied = self._running.counts, self._running.staying(self._ahead_seconds)
        soon = self._free() + sum(counts.values()) - sum(occupied.values())
        sizes = {queue: self.sizes.of(queue) for queue in queues}
        units = {queue: self._units_per_slot(queue, size) for queue, size in sizes.items()}
        rules, places, rooms = self._rules(), 0, {}
        is_first = True
        for queue in self._in_turn(queues, ready) if soon > 0 and 1 in units.values() else queues:
            size, is_long, count = sizes[queue], units[queue] == 1, ready.count(queue)
            joining = 0
            if count and self._ahead_seconds and self.sizes.is_mixed(queue):
                joining = self._gathered().get(queue, 0)
            free = soon if soon > 0 and (is_first or not is_long) else 0
            if rules and free:
                seconds = self._running.peak(queue)
                free = startable(queue, rules, free=free, running=occupied, seconds=seconds)
            waiting = count - joining
            taken = min(free, -(-waiting // size)) if is_long else 0
            if size > 1 and counts.get(queue) and self._fills(queue, size):
                free = max(1, free)  # one batch fills while another runs
            # A batch that gathers beside plain tasks doubles: what comes may not be for it.
            more = min(joining, max(0, self.sizes.largest(queue) - joining)) if joining else 0
            # What gets no slot here is for others; to ask for more of it would hide that.
            most = 0 if count and ready.is_stuck(queue) else free * units[queue] * size + more
            rooms[queue] = Room(most - waiting, most, size if is_long else 0)
            if is_long:
                places = max(places, -(-(most - waiting) // size))
                soon, occupied[queue] = soon - taken, occupied.get(queue, 0) + taken
            elif waiting and free and self._has_more(queue):
                is_first = False  # the slots are for what is still to come of it
        return rooms, places

    def _fills(self, queue: str, size: int) -> bool:
        """Return whether nearly all of a queue goes into batches."""
        return self._ahead_seconds > 0 and 2 * size >= self.sizes.largest(queue)

    def _in_turn(self, queues: Collection[str], ready: Ready) -> Iterable[str]:
        """Return the queues in the order of their turns, where that makes a difference."""
        if any(ready.count(queue) for queue in queues):
            return self.order(list(queues))
        return queues

    def _units_per_slot(self, queue: str, size: int) -> int:
        """Return how many units of a queue one slot can start soon: several of short ones."""
        mean = self._times.mean(queue)
        if mean is None:
            return 1
        ahead = self._ahead_seconds
        if size > 1 and ahead:
            ahead = max(ahead, size * ITEM_SECONDS)
        return 1 + int(ahead / max(mean, 1e-6))
