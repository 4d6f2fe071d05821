"""One drain, measured in the same way for both sides.

1. The whole backlog and a small warm-up backlog are put into two queues; no worker runs yet.
2. The workers start and consume the warm-up queue only. When it is empty they are started,
   connected, forked and warm.
3. The clock starts, and a remote-control ``add_consumer`` tells all workers to take the backlog
   too.
4. The clock stops when every task has been counted by the process that ran it (``apps.counters``)
   and the server holds nothing of the queue any more, neither waiting nor unacknowledged.

So neither start-up nor publishing is in the figure, and a task that was lost or ran twice fails
the round.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from celery import Celery

from benchmarks.apps import counters
from benchmarks.apps.settings import BENCH_QUEUE, WARM_QUEUE, Settings
from benchmarks.server import Server
from benchmarks.workers import BenchmarkError, Crew, Side, logs, produce, running

# Counters on a disk would cost page faults whenever the kernel writes them back.
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None

WARM_TASKS = 400
POLL_SECONDS = 0.005
# A machine that is twenty times slower than the one this was written on still finishes.
SLOWEST_RATE = 50.0
GRACE_SECONDS = 30.0

NOOP = "bench.noop"
LOAD = "bench.load"

# Stock's default is 4. Nothing between 1 and 400 made a difference above the noise, so stock gets
# what its users set for short tasks.
STOCK_PREFETCH_MULTIPLIER = 100
# As many messages as stock holds with that multiplier in two processes.
PLAIN_PREFETCH = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """What is drained, by whom. ``prefetch``: of the queue for ours, stock's multiplier."""

    side: Side
    crew: Crew = field(default_factory=Crew)
    task: str = NOOP
    store: bool = False
    batch_size: int = 1
    prefetch: int

    def rate(self, server: Server, size: int) -> float:
        """Drain ``size`` tasks once and return tasks per second."""
        server.flush()
        with tempfile.TemporaryDirectory(prefix="bench-", dir=MEMORY) as name:
            return size / self._seconds(server, self.settings(server, Path(name)), size)

    def settings(self, server: Server, directory: Path) -> Settings:
        """Return what this side's processes need to know."""
        return Settings(
            broker=server.broker_url,
            backend=server.backend_url,
            directory=directory,
            store=self.store,
            prefetch=self.prefetch,
            batch_size=self.batch_size,
        )

    def _seconds(self, server: Server, settings: Settings, size: int) -> float:
        warm = max(WARM_TASKS, self.batch_size)
        produce(self.side, settings, "fill", self.task, str(warm), WARM_QUEUE)
        produce(self.side, settings, "fill", self.task, str(size), BENCH_QUEUE)
        with running(self.side, self.crew, settings):
            wait_drained(server, settings.directory, WARM_QUEUE, count=warm)
            begin = time.perf_counter()
            add_consumer(settings.broker, BENCH_QUEUE)
            wait_drained(server, settings.directory, BENCH_QUEUE, count=warm + size, before=size)
            seconds = time.perf_counter() - begin
            self._verify(server, settings.directory, warm + size)
        return seconds

    def _verify(self, server: Server, directory: Path, expected: int) -> None:
        """Refuse a round in which the work was not done exactly once."""
        counts = counters.read(directory)
        if counters.total(directory) != expected:
            raise BenchmarkError(f"expected {expected} tasks, counted {counts}\n{logs(directory)}")
        if len(counts) != self.crew.processes:
            # A small backlog is gone before everybody has woken up.
            note = f"only {len(counts)} of {self.crew.processes} processes took part"
            print(f"{note}: a larger --size is needed", file=sys.stderr)
        if self.store and server.results() != expected:
            raise BenchmarkError(f"expected {expected} stored results, got {server.results()}")


def add_consumer(broker_url: str, queue: str, *, workers: Sequence[str] | None = None) -> None:
    """Tell workers, by their names, or all of them, to consume from one more queue."""
    with Celery("bench-control", broker=broker_url, set_as_current=False) as app:
        app.control.add_consumer(queue, destination=workers, reply=False)


def wait_drained(
    server: Server, directory: Path, queue: str, *, count: int, before: int = WARM_TASKS
) -> None:
    """Return when ``count`` tasks were counted in all and the server holds none of the queue."""
    limit = GRACE_SECONDS + before / SLOWEST_RATE

    def counted() -> bool:
        return counters.total(directory) >= count

    def settled() -> bool:
        return server.unfinished(queue) == 0

    for condition in (counted, settled):
        if not wait_for(condition, seconds=limit):
            raise BenchmarkError(
                f"queue {queue!r} not drained in {limit:g} s: expected {count}, "
                f"counted {counters.read(directory)}, unfinished {server.unfinished(queue)}\n"
                f"{logs(directory)}"
            )


def wait_for(condition: Callable[[], bool], *, seconds: float) -> bool:
    """Return whether the condition came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True
