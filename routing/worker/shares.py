"""Whose turn it is for a slot: shares of slot time by weight. Pure: the caller tells the time.

Counting turns would give a queue of 1 ms tasks nothing beside one of 2 s tasks, so what is shared
is the time that units run in slots (`charge_of`). A queue that has had work all along is never
behind its weight by more than the longest unit of any queue takes. The rule is that of earliest
eligible virtual deadlines (I. Stoica, H. Abdel-Wahab, "Earliest Eligible Virtual Deadline First",
Old Dominion University, TR-95-22, 1995) with one length for all requests, the longest that was
measured, as nobody knows what the next unit will take: among the queues that are not ahead of their
weight, the one that has to be served first so that it does not fall behind by so much.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from routing.worker.run_times import RunTimes

#: What a unit is taken for while nothing was measured anywhere: too much gives others the slots
#: that it might need, too little gives it those that others need.
UNKNOWN_SECONDS = 1.0

#: Differences below that are rounding.
TINY = 1e-9


class Shares:
    """Slot time of each queue, and who is next.

    Arguments:
        weights: share of each queue relative to the others; 1 for queues that are not named.
        times: what units are charged.
    """

    def __init__(self, weights: Mapping[str, int], times: RunTimes) -> None:
        self._weights = dict(weights)
        self._times = times
        #: Slot seconds of each queue, of units that have ended.
        self._served: dict[str, float] = {}
        #: Units that run, and the sum of the times at which they began.
        self._running: dict[str, tuple[int, float]] = {}
        self._active: set[str] = set()
        #: What the unit that was begun last has had before, for each unit of weight.
        self._virtual = 0.0

    @property
    def active(self) -> Collection[str]:
        """The queues that have work."""
        return frozenset(self._active)

    def reweigh(self, weights: Mapping[str, int], now: float) -> None:
        """Change the weights; nobody is ahead or behind then."""
        self._virtual = level = self._level(now)
        self._weights = dict(weights)
        self._served = {
            queue: level * self._weight(queue) - self._charge_of_running(queue, now)
            for queue in self._active
        }

    def arrive(self, queue: str) -> None:
        """Note that a queue has work; one that had none has saved up nothing.

        It may have waited for as long as what runs now has had its slots, when nobody listened, so
        it begins where that began (as in P. Goyal, H. Vin, H. Cheng, "Start-time Fair Queueing",
        SIGCOMM 1996).
        """
        if queue not in self._active:
            self._served[queue] = self._begins_with(queue)
            self._active.add(queue)

    def leave(self, queue: str) -> None:
        """Note that a queue has no work any more; what it is ahead by is remembered."""
        self._active.discard(queue)

    def begin(self, queue: str, now: float) -> None:
        """Note that a unit of a queue takes a slot."""
        if queue not in self._active:
            self.arrive(queue)
        count, began = self._running.get(queue, (0, 0.0))
        charge = self._served[queue] + (self._charge_of_running(queue, now) if count else 0.0)
        if (had := charge / self._weights.get(queue, 1)) > self._virtual:
            self._virtual = had
        self._running[queue] = (count + 1, began + now)

    def end(self, queue: str, began: float, seconds: float) -> None:
        """Note that a unit has left its slot, which is charged to its queue as so many seconds."""
        count, sum_began = self._running[queue]
        self._running[queue] = (count - 1, sum_began - began if count > 1 else 0.0)
        self._served[queue] = self._served.get(queue, 0.0) + seconds

    def is_running(self, queue: str) -> bool:
        """Return whether a unit of a queue has a slot."""
        return self._running.get(queue, (0, 0.0))[0] > 0

    def order(self, queues: Iterable[str], now: float) -> list[str]:
        """Return the queues in the order in which they are to be served."""
        charges = {queue: self._charge(queue, now) for queue in self._active}
        level, longest = self._level_of(charges), self._times.longest()
        self._bound_claims(charges, level, longest)

        def rank(queue: str) -> tuple[bool, float]:
            weight = self._weight(queue)
            if (charge := charges.get(queue)) is None:
                charge = self._begins_with(queue) + self._charge_of_running(queue, now)
            is_ahead = charge > level * weight + TINY
            return is_ahead, (charge + (0.0 if is_ahead else longest)) / weight

        return sorted(queues, key=rank)

    def _bound_claims(self, charges: dict[str, float], level: float, longest: float) -> None:
        """Forget what queues are behind by for another reason than their turns.

        One whose slots are limited, or of which nothing could be fetched, would have all turns
        for as long afterwards.
        """
        most = longest * (1 + sum(count for count, _ in self._running.values()))
        for queue, charge in charges.items() if longest else ():
            lack = level * self._weight(queue) - charge - most
            if lack > 0:
                self._served[queue] += lack
                charges[queue] += lack

    def take(self, queues: Collection[str], now: float) -> str:
        """Return the queue whose turn it is among these, which have work.

        Raises:
            ValueError: no queue was given.
        """
        if not queues:
            raise ValueError("nobody can have the turn: the queues are empty")
        for queue in queues:
            self.arrive(queue)
        return self.order(queues, now)[0]

    def behind(self, queue: str, now: float) -> float:
        """Return by how many slot seconds a queue with work is behind its weight."""
        return self._level(now) * self._weight(queue) - self._charge(queue, now)

    def _begins_with(self, queue: str) -> float:
        return max(self._served.get(queue, 0.0), self._virtual * self._weight(queue))

    def _weight(self, queue: str) -> int:
        return self._weights.get(queue, 1)

    def _level(self, now: float) -> float:
        """Return the slot seconds for each unit of weight that queues with work have had."""
        return self._level_of({queue: self._charge(queue, now) for queue in self._active})

    def _level_of(self, charges: Mapping[str, float]) -> float:
        weights = sum(map(self._weight, charges))
        return sum(charges.values()) / weights if weights else self._virtual

    def _charge(self, queue: str, now: float) -> float:
        return self._served.get(queue, 0.0) + self._charge_of_running(queue, now)

    def _charge_of_running(self, queue: str, now: float) -> float:
        count, began = self._running.get(queue, (0, 0.0))
        if not count:
            return 0.0
        return max(count * self._expected(queue), count * now - began)

    def _expected(self, queue: str) -> float:
        mean = self._times.mean(queue)
        return mean if mean is not None else self._times.longest() or UNKNOWN_SECONDS
