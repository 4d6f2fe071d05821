"""How long units of work keep a slot, measured: by queue, and by task of a queue. No clock, no I/O.

A mean tells how much can start soon and what a unit will be charged; a peak, which forgets slowly,
tells what a slot may be lent to.
"""

from __future__ import annotations

#: Weight of the newest run in a mean: what a task takes now counts within a dozen runs.
NEWEST = 0.2

#: What a peak loses with each shorter run: a rare long one is remembered for some hundred runs.
FADING = 0.99


class _Measured:
    """A mean and a peak."""

    __slots__ = ("mean", "peak")

    def __init__(self, seconds: float) -> None:
        self.mean = self.peak = seconds


class RunTimes:
    """Measured seconds in a slot.

    >>> times = RunTimes()
    >>> times.note("bulk", "load", 2.0)
    >>> times.mean("bulk"), times.peak("bulk", "load"), times.mean("urgent")
    (2.0, 2.0, None)
    """

    def __init__(self) -> None:
        self._queues: dict[str, _Measured] = {}
        self._tasks: dict[tuple[str, str], _Measured] = {}

    def note(self, queue: str, task: str, seconds: float) -> None:
        """Note that a unit of this task, from this queue, has kept a slot for so long."""
        of_queue, of_task = self._queues.get(queue), self._tasks.get((queue, task))
        if of_queue is None:
            of_queue = self._queues[queue] = _Measured(seconds)
        if of_task is None:
            of_task = self._tasks[queue, task] = _Measured(seconds)
        for measured in (of_queue, of_task):
            measured.mean += NEWEST * (seconds - measured.mean)
            faded = FADING * measured.peak
            measured.peak = seconds if seconds > faded else faded

    def mean(self, queue: str) -> float | None:
        """Return what a unit of a queue takes; None before any has ended."""
        return None if (found := self._queues.get(queue)) is None else found.mean

    def mean_of(self, queue: str, task: str) -> float | None:
        """Return what a unit of a task of a queue takes; None before any has ended."""
        return None if (found := self._tasks.get((queue, task))) is None else found.mean

    def peak(self, queue: str, task: str) -> float | None:
        """Return the most that a unit of a task takes, as far as it is remembered."""
        return None if (found := self._tasks.get((queue, task))) is None else found.peak

    def queue_peak(self, queue: str) -> float | None:
        """Return the most that a unit of a queue takes, as far as it is remembered."""
        return None if (found := self._queues.get(queue)) is None else found.peak

    def longest(self) -> float:
        """Return the most that a unit of any queue takes; 0 before any has ended."""
        return max((found.peak for found in self._queues.values()), default=0.0)
