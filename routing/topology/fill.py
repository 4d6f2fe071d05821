"""How full a queue is, by each of its bounds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from routing.topology.queue import QueueConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Fill:
    """What waits, and the most that may.

    Attributes:
        unit: what is counted: "messages", "bytes" or "delayed messages".
    """

    count: int
    limit: int
    unit: str

    @property
    def is_full(self) -> bool:
        """Whether nothing more fits."""
        return self.count >= self.limit


def fills_of(
    queue: QueueConfig, *, waiting: int, waiting_bytes: int, delayed: int
) -> Iterator[Fill]:
    """Yield how full a queue is by each bound that it has.

    >>> queue = QueueConfig(max_length=2)
    >>> [fill.is_full for fill in fills_of(queue, waiting=2, waiting_bytes=0, delayed=0)]
    [True]
    """
    bounds = (
        (waiting, queue.max_length, "messages"),
        (waiting_bytes, queue.max_bytes, "bytes"),
        (delayed, queue.max_delayed, "delayed messages"),
    )
    for count, limit, unit in bounds:
        if limit is not None:
            yield Fill(count=count, limit=limit, unit=unit)
