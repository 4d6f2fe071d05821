"""How many messages go into one call: a task says so, and a queue only where it has no other task.

Plain tasks and batches may share a queue, as they do where nothing routes a batch task. What a slot
takes of such a queue is estimated from what came lately. A limit cannot go by an estimate: there a
call is as many messages as a batch takes only where nothing else comes from the queue.
"""

from __future__ import annotations

from collections.abc import Mapping

#: What the newest message counts for: some dozens of them tell what a queue has now.
NEWEST = 0.05


class UnitSizes:
    """What one slot takes of each queue, in messages.

    Arguments:
        largest: the largest batch of each queue that has any.
        alone: the queues that one batch task has for itself, by what the routes say: its name and
            max_size.

    >>> sizes = UnitSizes({"bulk": 60}, {})
    >>> sizes.of("bulk")
    1
    >>> sizes.came("bulk", 200, batched=True)
    >>> sizes.of("bulk")
    60
    """

    def __init__(self, largest: Mapping[str, int], alone: Mapping[str, tuple[str, int]]) -> None:
        self._largest, self._alone = dict(largest), dict(alone)
        #: Part of the messages that were plain, lately.
        self._plain = {queue: float(queue not in alone) for queue in largest}

    def gathers(self, queue: str, size: int, task: str, *, is_keyed: bool) -> None:
        """Note that messages of a queue go into batches of so many, as the first one has come."""
        self._largest[queue] = max(size, self._largest.get(queue, 1))
        self._plain.setdefault(queue, 1.0)
        alone = self._alone.get(queue)
        if alone is not None and (alone[0] != task or is_keyed):
            del self._alone[queue]

    def came(self, queue: str, count: int, *, batched: bool) -> None:
        """Note that messages came as a batch, or as plain ones."""
        if (plain := self._plain.get(queue)) is None:
            return
        now = 0.0 if batched else 1.0
        self._plain[queue] = now + (plain - now) * (1 - NEWEST) ** count
        if not batched:
            self._alone.pop(queue, None)

    def largest(self, queue: str) -> int:
        """Return the size of the largest batch of a queue; 1 where none goes there."""
        return self._largest.get(queue, 1)

    def is_mixed(self, queue: str) -> bool:
        """Return whether other work than one batch task may come from a queue that has batches."""
        return queue in self._largest and queue not in self._alone

    def of(self, queue: str) -> int:
        """Return how many messages a slot takes: of batches, and of plain ones, as they came."""
        if (largest := self._largest.get(queue, 1)) == 1:
            return 1
        plain = self._plain[queue]
        return max(1, round(1 / (plain + (1 - plain) / largest)))

    def of_call(self, queue: str) -> int:
        """Return how many messages are surely one call."""
        return self._alone[queue][1] if queue in self._alone else 1
