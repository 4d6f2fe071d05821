"""``trickle``: how full batches are, and how long items wait, while items come one by one.

The other scenarios begin with a backlog, which fills batches whatever the worker does. Here items
arrive steadily at busy slots, first at a third of what a worker can do at most (prefork -c2: 100
items a second, 100 a batch, calls of 0.3 s), then in bursts, then steadily again, and at last at 80
% of it. A burst on a fresh worker shows what the worker had to lose.

It asserts nothing about time. Every item must have run once, else the run fails.
"""

from __future__ import annotations

import struct
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any, get_args

from benchmarks.apps.settings import Settings
from benchmarks.measure import wait_for
from benchmarks.queue_size import quantile
from benchmarks.runner import Study
from benchmarks.server import Server
from benchmarks.workers import (
    BenchmarkError,
    Crew,
    Pool,
    logs,
    run_module,
    start,
    stop,
    wait_ready,
)

# As in `benchmarks.apps.trickled`, which is imported in the workers' processes only.
QUEUE = "trickle"
MAX_SIZE = 100
CALL_SECONDS = 0.3
CALL = struct.Struct("=qqi")

STEADY_RATE = 100
STEADY_SECONDS = 5
LOADED_SECONDS = 8
BURSTS = 2
DRAIN_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One run of the batch task; all times in nanoseconds of the machine's monotonic clock."""

    began: int
    took: int
    waits: tuple[int, ...]


def run(server: Server, size: int) -> dict[str, dict[str, Any]]:
    """Send each pool's worker its trickle, and bursts of ``size`` items."""
    found = {}
    for pool in get_args(Pool):
        for name, case in _pool(server, Crew(pool=pool), size).items():
            found[f"{pool}_{name}"] = case
            print(f"trickle: {pool} {name}: {case}", file=sys.stderr, flush=True)
    return found


def _pool(server: Server, crew: Crew, size: int) -> dict[str, dict[str, Any]]:
    with _worker(server, crew) as load:
        fresh = _items_per_second(load.burst(size))
    slots = 1 if crew.pool == "solo" else crew.concurrency
    capacity = slots * MAX_SIZE / CALL_SECONDS
    with _worker(server, crew) as load:
        cases = {"steady": _waits(load.trickle(STEADY_RATE, STEADY_SECONDS))}
        for number in range(1, BURSTS + 1):
            calls = load.burst(size)
            cases[f"steady_after_{number}"] = _waits(load.trickle(STEADY_RATE, STEADY_SECONDS))
            cases[f"burst_{number}"] = _burst(calls, fresh)
        cases["at_80_percent"] = _waits(load.trickle(0.8 * capacity, LOADED_SECONDS))
    return dict(sorted(cases.items(), key=lambda case: "fresh_items_s" in case[1]))


@dataclass(slots=True, kw_only=True)
class Load:
    """Publishes to one worker, and reads what it noted."""

    settings: Settings
    seen: int = 0

    def trickle(self, rate: float, seconds: int) -> list[Call]:
        """Send items steadily; return the calls that they ran in."""
        return self._send(f"{rate:g}", str(seconds))

    def burst(self, count: int) -> list[Call]:
        """Send items at once; return the calls that they ran in."""
        return self._send("burst", str(count))

    def _send(self, *arguments: str) -> list[Call]:
        sent = int(run_module("benchmarks.apps.trickled", self.settings, *arguments)["count"])
        expected = self.seen + sent

        def is_over() -> bool:
            return sum(len(call.waits) for call in self._calls()) >= expected

        wait_for(is_over, seconds=DRAIN_SECONDS)
        calls, before = self._calls(), self.seen
        self.seen = sum(len(call.waits) for call in calls)
        if self.seen != expected:
            problem = f"expected {expected} items, {self.seen} ran"
            raise BenchmarkError(f"{problem}\n{logs(self.settings.directory)}")
        return list(_after(calls, before))

    def _calls(self) -> list[Call]:
        paths = self.settings.directory.glob("calls.*")
        calls = [call for path in paths for call in read_calls(path.read_bytes())]
        return sorted(calls, key=lambda call: call.began)


def _after(calls: list[Call], items: int) -> Iterator[Call]:
    """Yield the calls that came after so many items."""
    for call in calls:
        if items <= 0:
            yield call
        items -= len(call.waits)


def read_calls(data: bytes) -> Iterator[Call]:
    """Yield what the task noted of each call; one that is not all there yet ends it."""
    while len(data) >= CALL.size:
        began, took, count = CALL.unpack_from(data)
        end = CALL.size + 8 * count
        if len(data) < end:
            return
        yield Call(began=began, took=took, waits=struct.unpack(f"={count}q", data[CALL.size : end]))
        data = data[end:]


@contextmanager
def _worker(server: Server, crew: Crew) -> Iterator[Load]:
    """Run one worker with nothing to do yet."""
    server.flush()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        settings = Settings(
            broker=server.broker_url,
            backend=server.backend_url,
            directory=Path(name),
            store=False,
            prefetch=1,
            batch_size=1,
        )
        workers = [start("trickled", "trickle@bench", crew, settings, queue=QUEUE)]
        try:
            wait_ready(workers, settings.directory)
            load = Load(settings=settings)
            load.burst(1)
            yield load
        finally:
            stop(workers)


def _waits(calls: list[Call]) -> dict[str, Any]:
    waits = sorted(wait for call in calls for wait in call.waits)
    call = median(call.took for call in calls)
    p50, p99 = quantile(waits, 50), quantile(waits, 99)
    return {
        **_batches(calls),
        "wait_p50_ms": round(p50 / 1e6, 1),
        "wait_p99_ms": round(p99 / 1e6, 1),
        "p50_in_calls": round(p50 / call, 2),
        "p99_in_calls": round(p99 / call, 2),
    }


def _burst(calls: list[Call], fresh: float) -> dict[str, Any]:
    rate = _items_per_second(calls)
    return {
        **_batches(calls),
        "items_s": round(rate, 1),
        "fresh_items_s": round(fresh, 1),
        "ratio_to_fresh": round(rate / fresh, 2),
    }


def _batches(calls: list[Call]) -> dict[str, Any]:
    return {
        "items": sum(len(call.waits) for call in calls),
        "mean_batch": round(mean(len(call.waits) for call in calls), 1),
        "call_ms": round(median(call.took for call in calls) / 1e6, 1),
    }


def _items_per_second(calls: list[Call]) -> float:
    """Return the rate from the sending of the first item to the end of the last call."""
    sent = min(call.began - max(call.waits) for call in calls)
    ended = max(call.began + call.took for call in calls)
    return sum(len(call.waits) for call in calls) * 1e9 / (ended - sent)


STUDY = Study(
    name="trickle",
    summary="batch size, waits and bursts while items come one by one, by pool",
    size=1_200,
    run=run,
)
