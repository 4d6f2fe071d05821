"""Which queue may take another slot: reserves and limits. Pure.

``reserve`` keeps slots for a queue that no other may take, ``limit`` caps the slots that a queue
may hold. Reserves never keep all slots of a worker: the last one is for whoever has work, or a
worker with a single slot would serve one queue only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from routing.topology.queue import QueueConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """The slots of a queue, in one worker.

    Attributes:
        reserve: slots that are kept for it.
        limit: most slots that it may hold.
        lend_below: its reserve is lent to what keeps a slot for less than so many seconds; None
            lends it to nobody.
    """

    reserve: int = 0
    limit: int | None = None
    lend_below: float | None = None

    def keeps(self, running: int, seconds: float | None) -> int:
        """Return the slots that it keeps from others.

        Arguments:
            running: slots that it holds itself.
            seconds: for how long the other would keep a slot at most; None when nobody knows.
        """
        if self.lend_below is not None and seconds is not None and seconds < self.lend_below:
            return 0
        return max(0, self.reserve - running)


def rules_of(queues: Mapping[str, QueueConfig]) -> dict[str, Rule]:
    """Return the queues that have a reserve or a limit; nothing is kept for a paused one."""
    return {
        name: Rule(reserve=queue.reserve, limit=queue.limit, lend_below=queue.lend_below)
        for name, queue in queues.items()
        if (queue.reserve or queue.limit is not None) and not queue.paused
    }


def startable(
    queue: str,
    rules: Mapping[str, Rule],
    *,
    free: int,
    running: Mapping[str, int],
    seconds: float | None = None,
) -> int:
    """Return how many units of this queue may take one of the free slots each.

    Arguments:
        queue: the queue that the unit comes from.
        rules: the queues that have a reserve or a limit.
        free: slots that are free now.
        running: slots that each queue holds now.
        seconds: for how long the unit keeps a slot at most, as measured; None when nobody knows.

    >>> rules = {"urgent": Rule(reserve=1, lend_below=0.05)}
    >>> startable("bulk", rules, free=1, running={"bulk": 1})
    0
    >>> startable("bulk", rules, free=1, running={"bulk": 1}, seconds=0.01)
    1
    >>> startable("bulk", rules, free=3, running={"urgent": 1})
    3
    """
    kept = sum(
        other.keeps(running.get(name, 0), seconds) for name, other in rules.items() if name != queue
    )
    slots = free + sum(running.values())
    may_take = max(0, free - min(kept, slots - 1))
    rule = rules.get(queue)
    if rule is None or rule.limit is None:
        return may_take
    return max(0, min(may_take, rule.limit - running.get(queue, 0)))
