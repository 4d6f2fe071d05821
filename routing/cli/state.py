"""What is the matter with a queue, in the words of ``celery queues``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from routing.redis.ledger import Ledger, QueueLedger
from routing.topology.fill import Fill, fills_of
from routing.topology.live import LiveTable

_UNITS = {"messages": "", "delayed messages": " delayed", "bytes": ""}


def states(row: QueueLedger, table: LiveTable | None) -> Iterator[str]:
    """Yield what an operator should know about a queue; nothing for one that is well."""
    queue = table.queue(row.queue) if table is not None else None
    if queue is not None:
        yield from row.reasons(queue)
    if queue is not None and queue.drain:
        yield "draining" if row.waiting or row.delayed or row.unacked else "drained"
    if any(fill.is_full for fill in fills(row, table)):
        yield "full"
    if row.is_neglected:
        yield "no consumer"
    if row.is_incomplete:
        yield "INCOMPLETE"


def fills(row: QueueLedger, table: LiveTable | None) -> list[Fill]:
    """Return how full a queue is, by each of its bounds."""
    if table is None:
        return []
    return list(
        fills_of(
            table.queue(row.queue),
            waiting=row.waiting,
            waiting_bytes=row.waiting_bytes,
            delayed=row.delayed,
        )
    )


def fill_text(row: QueueLedger, table: LiveTable) -> str:
    """Return how full a queue is by the bound that is nearest; ``-`` without any."""
    nearest = max(fills(row, table), key=lambda fill: fill.count / fill.limit, default=None)
    if nearest is None:
        return "-"
    if nearest.unit == "bytes":
        return f"{_size(nearest.count)}/{_size(nearest.limit)}"
    return f"{nearest.count:,}/{nearest.limit:,}{_UNITS[nearest.unit]}"


def as_json(ledger: Ledger, table: LiveTable) -> dict[str, Any]:
    """Return every figure of the ledger, with what holds for each queue, under its public name."""
    figures = ledger.as_json()
    for row, shown in zip(ledger.queues, figures["queues"], strict=True):
        queue = table.queue(row.queue)
        shown |= {name: getattr(queue, name) for name in ("max_length", "max_bytes", "max_delayed")}
        shown |= {"full": any(fill.is_full for fill in fills(row, table))}
        shown |= {"paused": queue.paused, "drain": queue.drain}
        shown |= {"state": ", ".join(states(row, table)) or "ok"}
    return figures


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
