"""How many unfinished messages of each queue one process may hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from routing.topology.live import LiveTable
from routing.topology.model import Topology

#: The prefetch of a queue that neither the table nor a batch task says anything about.
DEFAULT_PREFETCH = 32


class Prefetch:
    """The prefetch of each queue in this process: of the table, until somebody changes it.

    Arguments:
        table: the queue table, as it is now.
    """

    def __init__(self, table: LiveTable | Topology) -> None:
        self.table = table
        self._changed: dict[str, int] = {}
        #: Queue to the prefetch with which the batches that go there can fill.
        self.batch_needs: Mapping[str, int] = {}
        #: What a queue may hold by what its slots can run; None when prefetch alone decides.
        self.ceiling: Callable[[str], int] | None = None

    def of(self, queue: str) -> int:
        """Return the most unfinished messages that this process may hold from a queue."""
        chosen = self._changed.get(queue) or self.table.queue(queue).prefetch
        return chosen or max(DEFAULT_PREFETCH, self.batch_needs.get(queue, 0))

    def now(self, queue: str) -> int:
        """Return the same as far as the slots can run it now; of a paused queue nothing."""
        if self.table.queue(queue).paused:
            return 0
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

    def reset(self, queue: str) -> None:
        """Let the table say again what a queue's prefetch is."""
        self._changed.pop(queue, None)
