"""What runs in the pool, by queue, and which queue may take another slot.

``reserve`` keeps slots for a queue that no other may take, ``limit`` caps the slots that a queue
may hold. Reserves never keep all slots of a worker: the last one is for whoever has work, or a
worker with a single slot would serve one queue only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from routing.topology.queue import QueueConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """The slots of a queue, in one worker."""

    reserve: int = 0
    limit: int | None = None


def rules_of(queues: Mapping[str, QueueConfig]) -> dict[str, Rule]:
    """Return the queues that have a reserve or a limit; nothing is kept for a paused one."""
    return {
        name: Rule(reserve=queue.reserve, limit=queue.limit)
        for name, queue in queues.items()
        if (queue.reserve or queue.limit is not None) and not queue.paused
    }


def startable(
    queue: str, rules: Mapping[str, Rule], *, free: int, running: Mapping[str, int]
) -> int:
    """Return how many units of this queue may take one of the free slots each.

    Arguments:
        queue: the queue that the unit comes from.
        rules: the queues that have a reserve or a limit.
        free: slots that are free now.
        running: slots that each queue holds now.

    >>> rules = {"urgent": Rule(reserve=1)}
    >>> startable("bulk", rules, free=1, running={"bulk": 1})
    0
    >>> startable("bulk", rules, free=3, running={"urgent": 1})
    3
    """
    kept = sum(
        max(0, other.reserve - running.get(name, 0))
        for name, other in rules.items()
        if name != queue
    )
    slots = free + sum(running.values())
    may_take = max(0, free - min(kept, slots - 1))
    rule = rules.get(queue)
    if rule is None or rule.limit is None:
        return may_take
    return max(0, min(may_take, rule.limit - running.get(queue, 0)))


class Running:
    """Counts the units that are in the pool.

    Arguments:
        rules: the queues that have a reserve or a limit.
        consumed: the queues that this worker consumes; a reserve for another would never be used.
    """

    def __init__(self, rules: Mapping[str, Rule], consumed: Callable[[], Collection[str]]) -> None:
        self.rules = rules
        self._consumed = consumed
        self._units: Counter[str] = Counter()
        #: Those of them that have acknowledged, so that no message of theirs is held.
        self._early: Counter[str] = Counter()

    def enter(self, queue: str, *, is_early: bool = False) -> Callable[[], None]:
        """Note that a unit entered the pool; returns what to call, once or more, when it left.

        Arguments:
            queue: the queue that the unit comes from.
            is_early: it acknowledges before it runs.
        """
        self._units[queue] += 1
        self._early[queue] += is_early
        inside = [queue]

        def leave() -> None:
            if inside:
                self._units[inside.pop()] -= 1
                self._early[queue] -= is_early

        return leave

    def eligible(self, queues: Iterable[str], *, free: int) -> list[str]:
        """Return the queues among these that may take one of the free slots."""
        if not self.rules:
            return list(queues) if free else []
        rules = self._rules_of_consumed()
        return [q for q in queues if startable(q, rules, free=free, running=self._units)]

    def most(self, queue: str, *, free: int) -> int:
        """Return for how many slots a queue may hold messages now.

        Those that it has, and the free ones; a unit that acknowledged early runs and holds nothing.
        """
        rules = self._rules_of_consumed()
        holding = self._units[queue] - self._early[queue]
        return holding + startable(queue, rules, free=free, running=self._units)

    def _rules_of_consumed(self) -> dict[str, Rule]:
        consumed = self._consumed()
        return {name: rule for name, rule in self.rules.items() if name in consumed}


class Shares:
    """Turns among queues.

    >>> shares = Shares({"a": 2, "b": 1})
    >>> [shares.take(["a", "b"]) for _ in range(6)]
    ['a', 'b', 'a', 'a', 'b', 'a']
    """

    def __init__(self, weights: Mapping[str, int]) -> None:
        self._weights = dict(weights)
        self._time: dict[str, float] = {}
        self._now = 0.0

    def take(self, queues: Iterable[str]) -> str:
        """Return the queue whose turn it is among these, which have work, and count the turn.

        Raises:
            ValueError: no queue was given.
        """
        queue = min(queues, key=self._start)
        self._now = self._start(queue)
        self._time[queue] = self._now + 1 / self._weights.get(queue, 1)
        return queue

    def _start(self, queue: str) -> float:
        return max(self._time.get(queue, 0.0), self._now)
