"""Two idle workers of two slots each, and four tasks at once: each of them has a slot at once.

A worker may hold eight messages, so one that takes all it may holds what the other could run.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.apps.plan import Plan
from benchmarks.fleet import fleet
from benchmarks.priority.starts import PREFORK
from benchmarks.queue_size import quantile
from benchmarks.server import Server

QUEUE = "bulk"
WORKERS = 2
PREFETCH = 8
TASKS = WORKERS * PREFORK.concurrency
TASK_SECONDS = 0.6
BOUND_MS = 50.0

#: Tasks of a round for each urgent call of the other cells.
CALLS_A_ROUND = 25
LEAST_ROUNDS = 4

SEED = 11


@dataclass(frozen=True, slots=True, kw_only=True)
class Siblings:
    """One cell."""

    side: Literal["ours", "stock"]

    @property
    def name(self) -> str:
        """Return its name in the report."""
        return f"siblings_{self.side}"

    def measure(self, server: Server, size: int) -> dict[str, Any]:
        """Send four tasks to idle workers, again and again."""
        rounds = max(LEAST_ROUNDS, size // CALLS_A_ROUND)
        queues = {QUEUE: {"prefetch": PREFETCH}}
        multiplier = PREFETCH // PREFORK.concurrency
        chance = random.Random(SEED)
        waits: list[float] = []
        with fleet(server, Plan(side=self.side, queues=queues, multiplier=multiplier)) as workers:
            for number in range(WORKERS):
                workers.start(f"sibling{number}", PREFORK, QUEUE)
            workers.wait_ready()
            workers.call(QUEUE, TASKS, per_second=100)
            for _ in range(rounds):
                # The workers have rested for a while, and not always for the same.
                time.sleep(chance.uniform(0.1, 0.6))
                made = workers.call(QUEUE, TASKS, per_second=10_000, seconds=TASK_SECONDS, warm=0)
                waits += made.waits_ms
        return figures(sorted(waits))


def figures(waits: list[float]) -> dict[str, Any]:
    """Return the figures of one cell; the waits are in order, in milliseconds.

    >>> figures([1.0, 2.0, 3.0, 600.0])["over"]
    1
    """
    return {
        "tasks": len(waits),
        "p50_ms": round(quantile(waits, 50), 1),
        "p99_ms": round(quantile(waits, 99), 1),
        "max_ms": round(waits[-1], 1),
        "bound_ms": BOUND_MS,
        "max_to_bound": round(waits[-1] / BOUND_MS, 2),
        "over": sum(wait > BOUND_MS for wait in waits),
    }


def cells() -> Iterator[Siblings]:
    """Yield every cell."""
    yield Siblings(side="ours")
    yield Siblings(side="stock")
