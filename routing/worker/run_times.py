"""How long units of work keep a slot, measured: by queue, and by task of a queue. No clock, no I/O.

A mean tells how much can start soon and what a unit will be charged; a peak, which forgets slowly,
tells what a slot may be lent to.
"""

from __future__ import annotations

#: Weight of the newest run in a mean: what a task takes now counts within a dozen runs.
NEWEST = 0.2

#: What a peak loses with each shorter run: a rare long one is remembered for some hundred runs.
FADING = 0.99


class RunTimes:
    """Measured seconds in a slot.

    >>> times = RunTimes()
    >>> times.note("bulk", "load", 2.0)
    >>> times.mean("bulk"), times.peak("bulk", "load"), times.mean("urgent")
    (2.0, 2.0, None)
    """

    def __init__(self) -> None:
        self._means: dict[str, float] = {}
        self._task_means: dict[tuple[str, str], float] = {}
        self._peaks: dict[tuple[str, str], float] = {}
        self._queue_peaks: dict[str, float] = {}

    def note(self, queue: str, task: str, seconds: float) -> None:
        """Note that a unit of this task, from this queue, has kept a slot for so long."""
        mean = self._means.get(queue, seconds)
        self._means[queue] = mean + NEWEST * (seconds - mean)
        key = (queue, task)
        mean = self._task_means.get(key, seconds)
        self._task_means[key] = mean + NEWEST * (seconds - mean)
        self._peaks[key] = max(seconds, FADING * self._peaks.get(key, 0.0))
        self._queue_peaks[queue] = max(seconds, FADING * self._queue_peaks.get(queue, 0.0))

    def mean(self, queue: str) -> float | None:
        """Return what a unit of a queue takes; None before any has ended."""
        return self._means.get(queue)

    def mean_of(self, queue: str, task: str) -> float | None:
        """Return what a unit of a task of a queue takes; None before any has ended."""
        return self._task_means.get((queue, task))

    def peak(self, queue: str, task: str) -> float | None:
        """Return the most that a unit of a task takes, as far as it is remembered."""
        return self._peaks.get((queue, task))

    def queue_peak(self, queue: str) -> float | None:
        """Return the most that a unit of a queue takes, as far as it is remembered."""
        return self._queue_peaks.get(queue)

    def longest(self) -> float:
        """Return the most that a unit of any queue takes; 0 before any has ended."""
        return max(self._queue_peaks.values(), default=0.0)
