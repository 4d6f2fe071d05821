"""When a batch is flushed: pure decisions, with the time as a parameter.

To flush a batch is to give it its turn for a slot: it goes when one is free, and until then it
takes what else arrives. It is flushed when it is full by count or by bytes, when its oldest item
has waited `max_wait`, or when a slot is idle and the broker is not known to hold more for it. So
waiting costs latency only while slots are busy, and batches fill by themselves under load. `Buffer`
asks; nobody else does.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, TypeAlias


class Reason(StrEnum):
    """Why a batch was flushed."""

    COUNT = "count"  # it holds max_size items
    BYTES = "bytes"  # the next item would take it over max_bytes
    WAIT = "wait"  # its oldest item has waited max_wait
    IDLE = "idle"  # a slot is free and nothing more is on its way


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The bounds of one task's batches."""

    max_size: int
    max_bytes: int | None
    max_wait_seconds: float


class Held(Protocol):
    """What waits for one batch."""

    @property
    def count(self) -> int:
        """How many items."""

    @property
    def size_bytes(self) -> int:
        """How many bytes of bodies."""

    @property
    def due_at(self) -> float:
        """Until when it may wait for more."""


@dataclass(frozen=True, slots=True)
class Flush:
    """Flush what is held, now."""

    reason: Reason


@dataclass(frozen=True, slots=True)
class Wait:
    """Hold on, and ask again at this time at the latest."""

    until: float


Decision: TypeAlias = Flush | Wait


def fits(limits: Limits, held: Held, size_bytes: int) -> bool:
    """Whether one more item of `size_bytes` may join; an item too big for any batch goes alone."""
    if held.count >= limits.max_size:
        return False
    if limits.max_bytes is None or held.count == 0:
        return True
    return held.size_bytes + size_bytes <= limits.max_bytes


def is_full(limits: Limits, held: Held) -> Reason | None:
    """The bound that was reached, when nothing more can join."""
    if held.count >= limits.max_size:
        return Reason.COUNT
    if limits.max_bytes is not None and held.size_bytes >= limits.max_bytes:
        return Reason.BYTES
    return None


def decide(limits: Limits, held: Held, now: float, *, idle: bool, backlog: bool) -> Decision:
    """Whether what is held goes now.

    `idle`: a slot is free. `backlog`: the broker is known to hold more, or more is being delivered,
    so that a moment's patience makes a fuller batch.
    """
    full = is_full(limits, held)
    if full is not None:
        return Flush(full)
    if now >= held.due_at:
        return Flush(Reason.WAIT)
    if idle and not backlog:
        return Flush(Reason.IDLE)
    return Wait(held.due_at)
