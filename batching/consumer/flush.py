"""When what waits for a batch goes: pure decisions."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, TypeAlias


class FlushReason(StrEnum):
    """Why a batch was flushed."""

    COUNT = "count"  # it holds max_size items
    BYTES = "bytes"  # the next item would take it over max_bytes
    COST = "cost"  # or over max_cost
    WAIT = "wait"  # its oldest item has waited max_wait, or expires soon
    IDLE = "idle"  # a slot is free and nothing more is on its way
    KEYS = "keys"  # more than max_open_keys gather
    URGENT = "urgent"  # its items are more urgent than most
    ALONE = "alone"  # its item asked for that


#: Of what does not wait for company.
AT_ONCE = frozenset({FlushReason.URGENT, FlushReason.ALONE})


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The bounds of one task's batches."""

    max_size: int
    max_bytes: int | None
    max_wait_seconds: float
    max_cost: float | None = None
    #: An idle slot does not take fewer items before they have waited.
    min_size: int = 1
    max_open_keys: int | None = None


class Gathered(Protocol):
    """What waits for one batch."""

    @property
    def count(self) -> int:
        """How many items."""

    @property
    def size_bytes(self) -> int:
        """How many bytes of bodies."""

    @property
    def cost(self) -> float:
        """What its items cost together."""

    @property
    def due_at(self) -> float:
        """Until when it may wait for more."""


@dataclass(frozen=True, slots=True)
class Flush:
    """Flush what is held, now."""

    reason: FlushReason


@dataclass(frozen=True, slots=True)
class Wait:
    """Hold on, and ask again at this time at the latest."""

    until: float


Decision: TypeAlias = Flush | Wait


def exceeded(
    limits: Limits, gathered: Gathered, size_bytes: int, cost: float = 0.0
) -> FlushReason | None:
    """The bound that one more item would exceed; one too big for any batch goes alone."""
    if gathered.count >= limits.max_size:
        return FlushReason.COUNT
    if gathered.count == 0:
        return None
    if limits.max_bytes is not None and gathered.size_bytes + size_bytes > limits.max_bytes:
        return FlushReason.BYTES
    if limits.max_cost is not None and gathered.cost + cost > limits.max_cost:
        return FlushReason.COST
    return None


def is_full(limits: Limits, gathered: Gathered) -> FlushReason | None:
    """The bound that was reached, when nothing more can join."""
    if gathered.count >= limits.max_size:
        return FlushReason.COUNT
    if limits.max_bytes is not None and gathered.size_bytes >= limits.max_bytes:
        return FlushReason.BYTES
    if limits.max_cost is not None and gathered.cost >= limits.max_cost:
        return FlushReason.COST
    return None


def decide_flush(
    limits: Limits, gathered: Gathered, now: float, *, idle: bool, backlog: bool
) -> Decision:
    """Whether what is gathered goes now.

    `idle`: a slot is free. `backlog`: the broker is known to hold more, or more is being delivered,
    so that a moment's patience makes a fuller batch.
    """
    full = is_full(limits, gathered)
    if full is not None:
        return Flush(full)
    if now >= gathered.due_at:
        return Flush(FlushReason.WAIT)
    if idle and not backlog and gathered.count >= limits.min_size:
        return Flush(FlushReason.IDLE)
    return Wait(gathered.due_at)


def limits_of(task: Any) -> Limits:
    """Return the bounds of a task's batches."""
    return Limits(
        max_size=task.max_size,
        max_bytes=task.max_bytes,
        max_wait_seconds=float(task.max_wait),
        max_cost=task.max_cost,
        min_size=task.min_size,
        max_open_keys=task.max_open_keys,
    )
