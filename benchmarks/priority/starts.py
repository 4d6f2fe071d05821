"""When urgent calls start beside a bulk backlog: ours with and without a reserve, and stock.

Each cell calls an idle fleet first and then, as often, the same fleet while it works on the
backlog. With a reserve (and on stock's dedicated workers) a call is to start within 10 ms or three
times the p99 of the idle fleet, whichever is more; without one a bulk task has to end first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import mean
from typing import Any, Literal

from benchmarks.apps.plan import Plan
from benchmarks.fleet import Calls, Fleet, fleet
from benchmarks.queue_size import quantile
from benchmarks.runner import ratio
from benchmarks.server import Server
from benchmarks.workers import Crew

How = Literal["reserve", "shared", "stock1", "stock4", "dedicated"]

URGENT, BULK = "urgent", "bulk"
CALLS_PER_SECOND = 20.0
BOUND_MS = 10.0
IDLE_TIMES = 3
SECONDS = {"5ms": 0.005, "50ms": 0.05, "200ms": 0.2, "2s": 2.0}
SIZES = {"1KB": 1_000, "100KB": 100_000}

#: Calls that come faster than a fleet starts them are given up so long after the last one.
PATIENCE_SECONDS = 30.0

#: The bulk tasks that wait at the broker, where they are no more than so many bytes.
BACKLOG = 100_000
BACKLOG_BYTES = 300_000_000

#: Bulk tasks that a worker may hold: far more than it can start, as a team sets for short tasks.
PREFETCH = 2_000

PREFORK = Crew(pool="prefork", concurrency=2)
THREADS = Crew(pool="threads", concurrency=4)
DEDICATED = Crew(pool="prefork", concurrency=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """One cell.

    Arguments:
        how: the fleet: ours with a reserved slot or without, stock with a multiplier, or stock with
            a worker for each queue.
        first: the queue in the first line of our table.
        computes: whether bulk tasks use a core; else they sleep.
    """

    how: How
    length: str
    size: str = "1KB"
    first: str = URGENT
    crew: Crew = PREFORK
    computes: bool = False

    @property
    def name(self) -> str:
        """Return its name in the report."""
        order = f"_{self.first}-first" if self.how in ("reserve", "shared") else ""
        return f"{self.group}_{self.how}{order}"

    @property
    def group(self) -> str:
        """Return what it has in common with the cells that it is compared with."""
        kind = "computing_" if self.computes else ""
        pool = f"{self.crew.pool}_" if self.crew.pool != "prefork" else ""
        return f"{kind}{pool}{self.length}_{self.size}"

    @property
    def seconds(self) -> float:
        """Return how long a bulk task takes."""
        return SECONDS[self.length]

    @property
    def backlog(self) -> int:
        """Return how many bulk tasks there are at most."""
        return min(BACKLOG, BACKLOG_BYTES // SIZES[self.size])

    @property
    def calls_at_once(self) -> int:
        """Return how many calls the backlog lasts for, on a machine without any cost of its own."""
        lasts = self.backlog * self.seconds / self.crew.concurrency
        return max(1, int(lasts * 0.8 * CALLS_PER_SECOND))

    def plan(self) -> Plan:
        """Return the app of its workers."""
        queues: dict[str, dict[str, Any]] = {
            URGENT: {"weight": 8, "prefetch": 8, "reserve": int(self.how == "reserve")},
            BULK: {"prefetch": PREFETCH},
        }
        return Plan(
            side="ours" if self.how in ("reserve", "shared") else "stock",
            queues={name: queues[name] for name in sorted(queues, key=lambda q: q != self.first)},
            multiplier=4 if self.how == "stock4" else 1,
        )

    def measure(self, server: Server, size: int) -> dict[str, Any]:
        """Make ``size`` calls on the idle fleet, and as many beside the backlog."""
        with fleet(server, self.plan()) as workers:
            if self.how == "dedicated":
                workers.start(URGENT, DEDICATED, URGENT)
                workers.start(BULK, DEDICATED, BULK)
            else:
                workers.start("both", self.crew, URGENT, BULK)
            workers.wait_ready()
            idle = workers.call(URGENT, size, per_second=CALLS_PER_SECOND)
            busy = Calls(waits_ms=[], unstarted=0)
            while (left := size - len(busy.waits_ms)) > 0 and not busy.unstarted:
                self._fill(workers)
                more = workers.call(
                    URGENT,
                    min(left, self.calls_at_once),
                    per_second=CALLS_PER_SECOND,
                    patience_seconds=PATIENCE_SECONDS,
                )
                workers.check_backlog(BULK)
                waits = sorted(busy.waits_ms + more.waits_ms)
                busy = Calls(waits_ms=waits, unstarted=more.unstarted)
        bulk_ms = 0.0 if self.how in ("reserve", "dedicated") else self.seconds * 1000
        return figures(idle, busy, bulk_ms=bulk_ms)

    def _fill(self, workers: Fleet) -> None:
        workers.fill(
            BULK,
            self.backlog - workers.waiting(BULK),
            seconds=self.seconds,
            size_bytes=SIZES[self.size],
            computes=self.computes,
        )


def cells() -> Iterator[Start]:
    """Yield every cell; those that are compared come one after the other."""
    for length in SECONDS:
        for size in SIZES:
            yield from _group(length, size, firsts=(URGENT, BULK))
    for length in SECONDS:
        for first in (URGENT, BULK):
            yield Start(how="reserve", length=length, first=first, crew=THREADS)
    for length in SECONDS:
        yield from _group(length, "1KB", firsts=(URGENT,), computes=True)


def _group(
    length: str, size: str, *, firsts: tuple[str, ...], computes: bool = False
) -> Iterator[Start]:
    for how in ("reserve", "shared"):
        for first in firsts:
            yield Start(how=how, length=length, size=size, first=first, computes=computes)
    for how in ("stock1", "stock4", "dedicated"):
        yield Start(how=how, length=length, size=size, computes=computes)  # type: ignore[arg-type]


def figures(idle: Calls, busy: Calls, *, bulk_ms: float) -> dict[str, Any]:
    """Return the figures of one cell.

    Arguments:
        bulk_ms: what a bulk task takes, where a call may have to wait for its end.

    >>> idle = Calls(waits_ms=[1.0] * 100, unstarted=0)
    >>> found = figures(idle, Calls(waits_ms=[2.0] * 99 + [300.0], unstarted=0), bulk_ms=200.0)
    >>> found["bound_ms"], found["over"]
    (210.0, 1)
    """
    waits = busy.waits_ms
    bound = max(BOUND_MS, IDLE_TIMES * quantile(idle.waits_ms, 99)) + bulk_ms
    return {
        "calls": len(waits),
        "idle_p50_ms": round(quantile(idle.waits_ms, 50), 1),
        "idle_p99_ms": round(quantile(idle.waits_ms, 99), 1),
        "mean_ms": round(mean(waits), 1),
        "p50_ms": round(quantile(waits, 50), 1),
        "p99_ms": round(quantile(waits, 99), 1),
        "max_ms": round(waits[-1], 1),
        "bound_ms": round(bound, 1),
        "p99_to_bound": round(quantile(waits, 99) / bound, 2),
        "over": sum(wait > bound for wait in waits),
        "unstarted": busy.unstarted,
    }


def compare(cases: Mapping[str, dict[str, Any]]) -> None:
    """Add the ratio of the mean to stock's with multiplier 1, where that was measured too."""
    for cell in cells():
        if cell.name in cases:
            stock = cases.get(f"{cell.group}_stock1", {})
            cases[cell.name]["mean_to_stock"] = ratio(
                cases[cell.name]["mean_ms"], stock.get("mean_ms")
            )
