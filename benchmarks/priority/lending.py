"""What a reserve costs while nobody needs it, and how soon it is back when somebody does.

The bulk queue has all work first, then urgent calls come. A reserve without ``lend_below`` stays
empty; one with it is lent to tasks that are shorter, and a call then waits for the end of one of
them at most. Without a reserve the bulk queue uses what there is, which is the measure.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.apps.plan import Plan
from benchmarks.fleet import fleet
from benchmarks.priority.shares import SETTLE_SECONDS, slot_ns
from benchmarks.priority.starts import (
    BULK,
    CALLS_PER_SECOND,
    PREFETCH,
    PREFORK,
    SECONDS,
    URGENT,
    figures,
)
from benchmarks.server import Server
from routing import QueueConfig

#: Seconds: the shorter tasks of the cells are below it, the longer ones above.
LEND_BELOW = 0.1

#: A table that knows the field has these cells too.
KNOWS_LENDING = "lend_below" in QueueConfig.model_fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Lending:
    """One cell; ``reserve`` slots are kept for urgent work, and lent below ``lend_below``."""

    length: str
    reserve: int = 0
    lend_below: float | None = None

    @property
    def name(self) -> str:
        """Return its name in the report."""
        kept = "kept" if self.reserve else "shared"
        return f"lending_{self.length}_{'lent' if self.lend_below else kept}"

    @property
    def is_lent(self) -> bool:
        """Return whether a call may find a bulk task in every slot."""
        below = self.lend_below is not None and SECONDS[self.length] < self.lend_below
        return not self.reserve or below

    def plan(self) -> Plan:
        """Return the app of its worker."""
        urgent: dict[str, Any] = {"weight": 8, "prefetch": 8, "reserve": self.reserve}
        if self.lend_below:
            urgent["lend_below"] = self.lend_below
        return Plan(side="ours", queues={URGENT: urgent, BULK: {"prefetch": PREFETCH}})

    def measure(self, server: Server, size: int) -> dict[str, Any]:
        """Let bulk work use the slots as long as ``size`` urgent calls take; then make them."""
        length, seconds = SECONDS[self.length], size / CALLS_PER_SECOND
        with fleet(server, self.plan()) as workers:
            workers.start("both", PREFORK, URGENT, BULK)
            workers.wait_ready()
            idle = workers.call(URGENT, size, per_second=CALLS_PER_SECOND)
            lasts = (2 * seconds + 2 * SETTLE_SECONDS) * PREFORK.concurrency
            workers.fill(BULK, int(1.3 * lasts / length) + PREFETCH, seconds=length)
            time.sleep(SETTLE_SECONDS)
            begin = time.monotonic_ns()
            time.sleep(seconds)
            end = time.monotonic_ns()
            busy = workers.call(URGENT, size, per_second=CALLS_PER_SECOND)
            workers.check_backlog(BULK)
            time.sleep(length)
            used = slot_ns(workers.runs(BULK), begin, end)
        waits = figures(
            idle,
            busy,
            bulk_ms=1000 * length if self.is_lent else 0.0,
        )
        used_percent = 100 * used / (end - begin) / PREFORK.concurrency
        return {"used_percent": round(used_percent, 1), **waits}


def cells() -> Iterator[Lending]:
    """Yield every cell."""
    for length in ("5ms", "50ms", "200ms"):
        yield Lending(length=length)
        yield Lending(length=length, reserve=1)
        if KNOWS_LENDING:
            yield Lending(length=length, reserve=1, lend_below=LEND_BELOW)
