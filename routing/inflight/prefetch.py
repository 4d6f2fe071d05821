"""How many unfinished messages of each queue one process may hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from routing.topology.model import Topology

#: The prefetch of a queue that neither the table nor a batch task says anything about, in a worker
#: with few slots: enough to hide the broker's round trip behind tasks of a few milliseconds.
DEFAULT_PREFETCH = 32

#: In one with many: as much again as runs, so that half of it is fetched while the other half runs.
PREFETCH_FOR_SLOT = 2


class Prefetch:
    """The prefetch of each queue in this process: of the table, until somebody changes it.

    Arguments:
        topology: the queue table.
    """

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._changed: dict[str, int] = {}
        #: Queue to the prefetch with which the batches that go there can fill.
        self.batch_needs: Mapping[str, int] = {}
        #: Queue to the slots of the worker that it may have.
        self.slot_needs: Mapping[str, int] = {}
        #: How many slots the process has now; 0 where it is no worker.
        self.slots: Callable[[], int] = lambda: 0
        #: What a queue may hold by what its slots can run; None when prefetch alone decides.
        self.ceiling: Callable[[str], int] | None = None

    def of(self, queue: str) -> int:
        """Return the most unfinished messages that this process may hold from a queue."""
        chosen = self._changed.get(queue) or self._topology.queue(queue).prefetch
        return chosen or max(
            DEFAULT_PREFETCH, PREFETCH_FOR_SLOT * self.slots(), self.batch_needs.get(queue, 0)
        )

    def now(self, queue: str) -> int:
        """Return the same as far as the slots can run it now."""
        most = self.of(queue)
        return most if self.ceiling is None else min(most, self.ceiling(queue))

    def change(self, queue: str, count: int) -> None:
        """Change a queue's prefetch in this process, until it ends.

        Raises:
            ValueError: the count is not a positive number.
        """
        if count < 1:
            raise ValueError(f"queue {queue!r}: prefetch must be at least 1, got {count!r}")
        self._changed[queue] = count
