"""How many unfinished messages of each queue one process may hold."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

from routing.inflight.ready import Ready
from routing.topology.live import LiveTable
from routing.topology.model import Topology

#: The prefetch of a queue that neither the table nor a batch task says anything about, in a worker
#: with few slots: enough to hide the broker's round trip behind tasks of less than a millisecond.
DEFAULT_PREFETCH = 32

#: In one with many: as much again as runs, so that short tasks are fetched while others run.
PREFETCH_FOR_SLOT = 2


class Room(NamedTuple):
    """What the slots of a worker can start of a queue soon.

    Attributes:
        free: messages that may be fetched.
        most: messages that may wait for a slot at once.
        per_slot: messages that take a slot which no other queue can have then; 0 where they are
            over at once.
    """

    free: int
    most: int
    per_slot: int


class Demand(Protocol):
    """What a worker's slots ask for."""

    def rooms(self, queues: Collection[str], ready: Ready) -> tuple[Mapping[str, Room], int]:
        """Return the room of each queue, and for how many slots of all work is to be fetched."""

    def call_size(self, queue: str) -> int:
        """Return how many messages of a queue are surely one call."""

    def order(self, queues: Sequence[str]) -> list[str]:
        """Return these queues in the order in which they are to be served."""

    @property
    def limits_text(self) -> str:
        """What a fetch says of the limits of tasks and keys."""


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
        #: What a worker's slots ask for; None when prefetch alone decides.
        self.demand: Demand | None = None
        #: Queue to the slots of the worker that it may have.
        self.slot_needs: Mapping[str, int] = {}
        #: How many slots the process has now; 0 where it is no worker.
        self.slots: Callable[[], int] = lambda: 0

    @property
    def has_limits(self) -> bool:
        """Whether the table limits tasks."""
        table = self.table.table if isinstance(self.table, LiveTable) else self.table
        return bool(table.limits)

    def of(self, queue: str) -> int:
        """Return the most unfinished messages that this process may hold from a queue."""
        chosen = self._changed.get(queue) or self.table.queue(queue).prefetch
        return chosen or max(
            DEFAULT_PREFETCH, PREFETCH_FOR_SLOT * self.slots(), self.batch_needs.get(queue, 0)
        )

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
