"""Which queue is served next: shares by weight, as pure bookkeeping.

Each queue has a virtual time that grows by 1/weight with every unit taken from it; the queue with
work that is furthest behind goes next (stride scheduling: Waldspurger and Weihl, 1995). A queue
that had nothing to do does not save up turns: it starts again at the time of the last unit served.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping


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
