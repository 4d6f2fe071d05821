"""What bounds a queue, in the form in which `push` takes it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from routing.message.evidence import Evidence
from routing.topology.model import Topology

#: Whether the bounds hold for what is pushed. "exempt": work that was accepted before is let in,
#: and counted as overshoot. "whole": all of it or nothing. "none": nothing fits, as somebody found
#: out before. "": as much as fits.
Terms = Literal["", "exempt", "whole", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """The bounds of one queue; 0 is none."""

    max_length: int
    max_bytes: int
    #: max_length, max_bytes, policy, most dead letters, evidence.
    args: tuple[Any, ...]

    @property
    def are_set(self) -> bool:
        """Whether there is a bound at all."""
        return bool(self.max_length or self.max_bytes)

    @property
    def drop(self) -> bool:
        """Whether something is dropped, instead of refused, above a bound."""
        return self.are_set and self.args[2] not in ("reject", "block")


def bounds_of(topology: Topology, queue: str, *, delayed: bool = False) -> Bounds:
    """Return the bounds of a queue; those of one that is not in the table are none.

    For delayed messages, the only bound is max_delayed, in the place of max_length.
    """
    if queue not in topology.queues:
        return _UNBOUNDED
    return _bounds(queue, topology.queue(queue), delayed)


@lru_cache(maxsize=1024)
def _bounds(queue: str, config: Any, delayed: bool) -> Bounds:
    policy = config.overflow
    if policy == "dead_letter" and config.max_dead == 0:
        policy = "drop_newest"
    length, size = config.max_length or 0, config.max_bytes or 0
    if delayed:
        length, size = config.max_delayed or 0, 0
    counted = "delayed messages" if delayed else "messages"
    evidence = _evidence(queue, length, counted, size) if policy == "dead_letter" else ""
    return Bounds(
        max_length=length,
        max_bytes=size,
        args=(length, size, policy, config.max_dead, evidence),
    )


_UNBOUNDED = Bounds(max_length=0, max_bytes=0, args=(0, 0, "reject", 0, ""))


def _evidence(queue: str, length: int, counted: str, size: int) -> str:
    full = f"queue {queue!r} was full: at most " + " and ".join(
        f"{bound} {unit}" for bound, unit in ((length, counted), (size, "bytes")) if bound
    )
    return Evidence(
        reason="overflow",
        queue=queue,
        exception="routing.errors.Dropped",
        message=f"{full} may wait",
        fingerprint=f"overflow:{queue}",
    ).rest()
