"""What runs in the pool now, and when its slots will be free, as far as measured times tell."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

from routing.worker.run_times import RunTimes
from routing.worker.shares import Shares


class Run(NamedTuple):
    """A unit in its slot."""

    queue: str
    task: str
    began: float


class Running:
    """The units that are in the pool; what they take is measured, and charged to their queues.

    Arguments:
        times: where it is noted what they take.
        shares: where that is charged.
        clock: tells the time in seconds.
    """

    def __init__(
        self, times: RunTimes, shares: Shares, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._times, self._shares, self._clock = times, shares, clock
        self._runs: dict[int, Run] = {}
        self._entered = 0
        self._counts: Counter[str] = Counter()

    @property
    def counts(self) -> Mapping[str, int]:
        """How many slots each queue has."""
        return self._counts

    def enter(
        self, queue: str, task: str = "", on_left: Callable[[str], None] | None = None
    ) -> Callable[[], None]:
        """Note that a unit enters the pool; returns what to call, once or more, when it has left.

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

        def leave() -> None:
            if self._runs.pop(number, None) is None:
                return
            now = self._clock()
            self._counts[queue] -= 1
            self._times.note(queue, task, now - began)
            self._shares.end(queue, began, now)
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

    def staying(self, seconds: float) -> Counter[str]:
        """Return how many slots of each queue are not expected to be free within so many seconds.

        What has been in its slot for longer than it was to be expected, by so much, is not.
        """
        now = self._clock()
        staying: Counter[str] = Counter()
        for run in self._runs.values():
            expected = self._times.mean_of(run.queue, run.task)
            if expected is None or abs(run.began + expected - now) > seconds:
                staying[run.queue] += 1
        return staying
