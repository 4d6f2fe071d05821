"""Who may take a slot of this worker, and whose turn it is: rules, shares and measured times."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence

from routing.topology.queue import QueueConfig
from routing.worker.fairness import Rule, rules_of, startable
from routing.worker.run_times import RunTimes
from routing.worker.running import Leave, Running
from routing.worker.shares import Shares
from routing.worker.units import Unit, WaitingUnits, task_of

#: Work is fetched for a slot so long before it is free: some round trips, during which it would
#: have nothing to do.
AHEAD_SECONDS = 0.015

#: Long work leaves its slot for so long to a fetch that is out and may bring what is more urgent.
YIELD_SECONDS = 0.002

#: Longer work does so for this part of what it takes, at most for so many seconds.
YIELD_PART, YIELD_AT_MOST = 0.05, 0.01

#: Work that keeps a slot for longer is worth a moment's look at who else wants it.
LONG_SECONDS = 0.02


class Scheduler:
    """Decides for one worker; what runs outlives connections, and so does this.

    Arguments:
        consumed: returns the queues that the worker consumes; a reserve for another would never be
            used.
        has_work: returns whether work of a queue waits, here or at the broker.
        on_free: called when a unit has left its slot.
        on_soon_free: called with the seconds until one is expected to leave soon.
        clock: tells the time in seconds.
    """

    def __init__(
        self,
        consumed: Callable[[], Collection[str]],
        has_work: Callable[[str], bool],
        *,
        on_free: Callable[[], None] = lambda: None,
        on_soon_free: Callable[[float], None] = lambda seconds: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._on_free, self._on_soon_free = on_free, on_soon_free
        self._consumed, self._has_work = consumed, has_work
        self.times, charges = RunTimes(), RunTimes()
        self.shares = Shares({}, charges)
        self.running = Running(self.times, self.shares, charges, clock=clock)
        self._rules: dict[str, Rule] = {}
        #: The unit that yields, and until when.
        self._yielding: tuple[Unit | None, float] = None, 0.0

    def configure(self, queues: Mapping[str, QueueConfig]) -> None:
        """Go by this table from now on."""
        self.shares.reweigh({name: one.weight for name, one in queues.items()}, self._clock())
        self._rules = rules_of(queues)

    def rules(self) -> Mapping[str, Rule]:
        """Return the rules of the queues that are consumed."""
        if not self._rules:
            return self._rules
        consumed = self._consumed()
        return {name: rule for name, rule in self._rules.items() if name in consumed}

    def eligible(self, waiting: WaitingUnits, *, free: int) -> list[str]:
        """Return the queues of which the first unit may take one of the free slots."""
        queues = list(waiting.queues())
        if not (rules := self.rules()):
            return queues if free else []
        return [
            queue
            for queue in queues
            if self.may_take(queue, task_of(waiting.first(queue)), free=free, rules=rules) > 0
        ]

    def may_take(
        self,
        queue: str,
        task: str,
        *,
        free: int,
        rules: Mapping[str, Rule],
        entering: Unit | None = None,
    ) -> int:
        """Return how many units of a task of this queue may take one of the free slots each.

        Arguments:
            entering: has taken its slot, and is not in the pool yet.
        """
        running = self.running.counts
        if entering is not None:
            running = {**running, entering.queue: running.get(entering.queue, 0) + 1}
        seconds = self.running.peak(queue, task)
        return startable(queue, rules, free=free, running=running, seconds=seconds)

    def next(self, queues: Sequence[str]) -> str:
        """Return the queue whose turn it is among these, which have work here."""
        return queues[0] if len(queues) == 1 else self.shares.take(queues, self._clock())

    def order(self, queues: Sequence[str]) -> list[str]:
        """Return the queues in the order in which they are to be served."""
        if len(queues) == 1:
            return list(queues)
        for queue in self.shares.active:
            self._leave_if_idle(queue)
        for queue in queues:  # also what gets no room yet, or it would begin anew for ever
            if self._has_work(queue):
                self.shares.arrive(queue)
        return self.shares.order(queues, self._clock())

    def yields(self, unit: Unit, coming: Callable[[], Sequence[str]]) -> bool:
        """Return whether a unit leaves its slot to what may come of other queues in a moment.

        Only one that would keep it for long.

        Arguments:
            coming: returns the queues of which something may come.
        """
        if (expected := self.expected(unit)) <= LONG_SECONDS:
            return False
        if not (others := [queue for queue in coming() if queue != unit.queue]):
            return False
        if self._yielding[0] is not unit:
            patience = min(YIELD_AT_MOST, max(YIELD_SECONDS, YIELD_PART * expected))
            self._yielding = unit, self._clock() + patience
        if self._clock() >= self._yielding[1]:
            return False
        return self.order([unit.queue, *others])[0] != unit.queue

    def enter(self, unit: Unit | None) -> Leave:
        """Note that a unit enters the pool; returns what to call, once or more, when it left."""
        if unit is None or not unit.requests:
            return self.running.enter("", on_left=self._left)
        task = task_of(unit)
        seconds = self.times.mean_of(unit.queue, task) or 0.0
        if seconds > AHEAD_SECONDS:
            self._on_soon_free(seconds - AHEAD_SECONDS)
        return self.running.enter(unit.queue, task, self._left)

    def _left(self, queue: str) -> None:
        self._leave_if_idle(queue)
        self._on_free()

    def expected(self, unit: Unit) -> float:
        """Return for how many seconds a unit is expected to keep its slot; 0 when nobody knows."""
        return self.times.mean_of(unit.queue, task_of(unit)) or 0.0

    def _leave_if_idle(self, queue: str) -> None:
        if not self.shares.is_running(queue) and not self._has_work(queue):
            self.shares.leave(queue)
