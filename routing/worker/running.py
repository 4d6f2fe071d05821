"""What runs in the pool now, and when its slots will be free, as far as measured times tell."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from routing.worker.run_times import RunTimes
from routing.worker.shares import Shares


class Run(NamedTuple):
    """A unit in its slot."""

    queue: str
    task: str
    began: float


class Leave(Protocol):
    """What is called when a unit has left its slot."""

    def __call__(self, ran_seconds: float | None = None) -> None:
        """Note that it has, and for how long it ran there."""


def charge_of(kept_seconds: float, ran_seconds: float | None) -> float:
    """Return what a unit is charged that has kept a slot for so long, and run for a part of that.

    Its run: what handing over and answering take is not the queue's doing. Where that takes longer
    than the run, it is what the slots are used up by.

    >>> charge_of(6.5, 5.0), charge_of(1.5, 0.25), charge_of(5.0, None)
    (5.0, 1.25, 5.0)
    """
    if ran_seconds is None:
        return kept_seconds
    return max(min(ran_seconds, kept_seconds), kept_seconds - ran_seconds)


class Running:
    """The units that are in the pool; what they take is measured, and charged to their queues.

    Arguments:
        times: where it is noted for how long they keep their slots.
        shares: where their runs are charged.
        charges: where it is noted what they are charged.
        clock: tells the time in seconds.
    """

    def __init__(
        self,
        times: RunTimes,
        shares: Shares,
        charges: RunTimes,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._times, self._shares, self._clock = times, shares, clock
        self._charges = charges
        self._runs: dict[int, Run] = {}
        self._entered = 0
        self._counts: Counter[str] = Counter()

    @property
    def counts(self) -> Mapping[str, int]:
        """How many slots each queue has."""
        return self._counts

    def enter(
        self, queue: str, task: str = "", on_left: Callable[[str], None] | None = None
    ) -> Leave:
        """Note that a unit enters the pool; returns what to call, once or more, when it has left.

        That is given for how many seconds it ran, where somebody knows.

        Arguments:
            queue: the queue that the unit comes from.
            task: its task.
            on_left: called with the queue when it has left.
        """
        self._entered = number = self._entered + 1
        began = self._clock()
        self._runs[number] = Run(queue, task, began)
        self._counts[queue] += 1
        self._shares.begin(queue, began)

        def leave(ran_seconds: float | None = None) -> None:
            if self._runs.pop(number, None) is None:
                return
            kept = self._clock() - began
            charge = charge_of(kept, ran_seconds)
            self._counts[queue] -= 1
            self._times.note(queue, task, kept)
            self._charges.note(queue, task, charge)
            self._shares.end(queue, began, charge)
            if on_left is not None:
                on_left(queue)

        return leave

    def peak(self, queue: str, task: str | None = None) -> float | None:
        """Return the most that a unit of a queue, or of one of its tasks, keeps a slot for.

        As measured, or as what runs now shows already; None when nobody knows.
        """
        times = self._times
        measured = times.queue_peak(queue) if task is None else times.peak(queue, task)
        if measured is None:
            return None
        runs = [r for r in self._runs.values() if r.queue == queue and task in (None, r.task)]
        return max([measured, *(self._clock() - run.began for run in runs)])

    def staying(self, seconds: float) -> dict[str, int]:
        """Return how many slots of each queue are not expected to be free within so many seconds.

        What has been in its slot for longer than it was to be expected, by so much, is not.
        """
        now = self._clock()
        staying: dict[str, int] = {}
        for run in self._runs.values():
            expected = self._times.mean_of(run.queue, run.task)
            if expected is None or abs(run.began + expected - now) > seconds:
                staying[run.queue] = staying.get(run.queue, 0) + 1
        return staying
