"""``urgent``: when urgent calls start while bulk work keeps a worker busy.

One worker, an urgent queue with ``reserve = 1`` and a bulk queue whose backlog never ends, in every
combination of pool, length of the bulk tasks (which sleep), size of their messages and order of the
queue table. Calls are compared with the same calls on the same worker before it had bulk work.

The bound of a cell is 25 ms or three times the p99 of the idle worker, whichever is more; ``over``
counts the calls that waited for more than the bound and one bulk task.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from benchmarks.apps.settings import Settings
from benchmarks.measure import add_consumer, wait_for
from benchmarks.queue_size import quantile
from benchmarks.runner import Study
from benchmarks.server import Server
from benchmarks.workers import BenchmarkError, Crew, Pool, logs, run_module, running

MODULE = "benchmarks.apps.urgent"
URGENT, BULK = "urgent", "bulk"
PREFETCH = 2_000
CALLS_PER_SECOND = 25.0
IDLE_CALLS = 150
BOUND_MS = 25.0
SECONDS = (0.02, 0.2, 2.0)
SIZES = {"1KB": 1_000, "100KB": 100_000}
CREWS: dict[str, Crew] = {
    "prefork": Crew(pool="prefork", concurrency=2),
    "threads": Crew(pool="threads", concurrency=4),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One combination."""

    pool: Pool
    seconds: float
    size: str
    first: str

    @property
    def name(self) -> str:
        """Return its name in the report."""
        return f"{self.pool}_{self.seconds * 1000:g}ms_{self.size}_{self.first}-first"

    def backlog(self, calls: int) -> int:
        """Return how many bulk tasks keep the worker busy for so many calls."""
        rate = (CREWS[self.pool].concurrency - 1) / self.seconds
        return int(1.3 * rate * (calls / CALLS_PER_SECOND + 4)) + 200


def cells() -> Iterator[Cell]:
    """Yield every combination."""
    for pool in CREWS:
        for seconds in SECONDS:
            for size in SIZES:
                for first in (URGENT, BULK):
                    yield Cell(pool=pool, seconds=seconds, size=size, first=first)  # type: ignore[arg-type]


def run(server: Server, size: int) -> dict[str, dict[str, Any]]:
    """Measure every cell with so many urgent calls."""
    found = {}
    for cell in cells():
        server.flush()
        found[cell.name] = _measure(server, cell, size)
        figures = ", ".join(f"{key} {value}" for key, value in found[cell.name].items())
        print(f"urgent: {cell.name}: {figures}", file=sys.stderr, flush=True)
    return found


def _measure(server: Server, cell: Cell, calls: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        settings = Settings(
            broker=server.broker_url,
            backend=server.backend_url,
            directory=Path(directory),
            store=False,
            prefetch=PREFETCH,
            batch_size=1,
        )
        os.environ["BENCH_FIRST"] = cell.first
        with running("urgent", CREWS[cell.pool], settings):
            add_consumer(settings.broker, URGENT)
            add_consumer(settings.broker, BULK)
            idle = _call(settings, IDLE_CALLS)
            backlog = str(cell.backlog(calls))
            run_module(MODULE, settings, "fill", backlog, str(cell.seconds), str(SIZES[cell.size]))
            busy = _call(settings, calls)
            _check_backlog(server, cell)
            # What is left is not waited for.
            with redis.Redis.from_url(settings.broker) as client:
                client.delete(BULK)
    return figures(idle, busy, bulk_ms=cell.seconds * 1000)


def _call(settings: Settings, calls: int) -> list[float]:
    """Make urgent calls; returns in order how many milliseconds they waited for their start."""
    for path in settings.directory.glob("ages.*"):
        os.truncate(path, 0)
    run_module(MODULE, settings, "call", str(calls), str(CALLS_PER_SECOND))
    if not wait_for(lambda: len(_ages(settings.directory)) >= calls, seconds=30):
        raise BenchmarkError(
            f"{len(_ages(settings.directory))} of {calls} urgent calls started\n"
            f"{logs(settings.directory)}"
        )
    return sorted(_ages(settings.directory))


def _check_backlog(server: Server, cell: Cell) -> None:
    if not server.unfinished(BULK):
        raise BenchmarkError(f"{cell.name}: the bulk work ended before the urgent calls did")


def figures(idle: list[float], busy: list[float], *, bulk_ms: float) -> dict[str, Any]:
    """Return the figures of one cell; both lists are in order, in milliseconds.

    >>> figures([1.0] * 100, [2.0] * 99 + [300.0], bulk_ms=200)["over"]
    1
    """
    bound = max(BOUND_MS, 3 * quantile(idle, 99))
    return {
        "idle_p50_ms": round(quantile(idle, 50), 1),
        "idle_p99_ms": round(quantile(idle, 99), 1),
        "p50_ms": round(quantile(busy, 50), 1),
        "p99_ms": round(quantile(busy, 99), 1),
        "max_ms": round(busy[-1], 1),
        "bound_ms": round(bound, 1),
        "p99_to_bound": round(quantile(busy, 99) / bound, 2),
        "over": sum(age > bound + bulk_ms for age in busy),
        "calls": len(busy),
    }


def _ages(directory: Path) -> list[float]:
    data = b"".join(path.read_bytes() for path in directory.glob("ages.*"))
    return [age / 1e6 for age in memoryview(data[: len(data) // 8 * 8]).cast("q")]


STUDY = Study(
    name="urgent",
    summary="start of urgent calls beside a bulk backlog, by pool, task length, size, table order",
    size=500,
    run=run,
    in_all=True,
)
