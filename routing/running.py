"""What runs in the pool, by queue, and which queue may take another slot.

``reserve`` keeps slots for a queue that no other may take, ``limit`` caps the slots that a queue
may hold. Reserves never keep all slots of a worker: the last one is for whoever has work, or a
worker with a single slot would serve one queue only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """The slots of a queue, in one worker."""

    reserve: int = 0
    limit: int | None = None


def may_start(
    queue: str, rules: Mapping[str, Rule], *, free: int, running: Mapping[str, int]
) -> bool:
    """Return whether a unit of this queue may take one of the free slots.

    Arguments:
        queue: the queue that the unit comes from.
        rules: the queues that have a reserve or a limit.
        free: slots that are free now.
        running: slots that each queue holds now.

    >>> rules = {"urgent": Rule(reserve=1)}
    >>> may_start("bulk", rules, free=1, running={"bulk": 1})
    False
    >>> may_start("bulk", rules, free=1, running={"urgent": 1})
    True
    """
    rule = rules.get(queue)
    if rule is not None and rule.limit is not None and running.get(queue, 0) >= rule.limit:
        return False
    kept = sum(
        max(0, other.reserve - running.get(name, 0))
        for name, other in rules.items()
        if name != queue
    )
    slots = free + sum(running.values())
    return free > min(kept, slots - 1)


class Running:
    """Counts the units that are in the pool.

    Arguments:
        rules: the queues that have a reserve or a limit.
        consumed: the queues that this worker consumes; a reserve for another would never be used.
    """

    def __init__(self, rules: Mapping[str, Rule], consumed: Callable[[], Collection[str]]) -> None:
        self._rules = rules
        self._consumed = consumed
        self._units: Counter[str] = Counter()

    def enter(self, queue: str) -> Callable[[], None]:
        """Note that a unit entered the pool; returns what to call, once or more, when it left."""
        self._units[queue] += 1
        inside = [queue]

        def leave() -> None:
            if inside:
                self._units[inside.pop()] -= 1

        return leave

    def eligible(self, queues: Iterable[str], *, free: int) -> list[str]:
        """Return the queues among these that may take one of the free slots."""
        if not self._rules:
            return list(queues)
        consumed = self._consumed()
        rules = {name: rule for name, rule in self._rules.items() if name in consumed}
        return [q for q in queues if may_start(q, rules, free=free, running=self._units)]
