"""``gate``: limits of all workers together hold, and hold nothing up, while workers are killed.

``concurrency``: so many tasks under ``concurrency = 3``, four workers, two of which are killed
while it runs. ``rate``: 50 starts a second for twenty seconds. The run fails when the broker's own
count was ever over the limit, when something is left a lease after the others have ended, or when
the rate is off by more than a twentieth.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis

from benchmarks.apps import runs
from benchmarks.apps.settings import Settings
from benchmarks.runner import Study
from benchmarks.server import Server
from benchmarks.workers import BenchmarkError, Crew, logs, run_module, start, stop, wait_ready
from tasks.child import Child

QUEUE = "gated"
WORKERS = 4
CREW = Crew(pool="threads", concurrency=4)

CONCURRENCY = 3
#: Shares of the tasks after whose end a worker is killed.
KILLS_AT = (0.3, 0.6)

STARTS_PER_SECOND = 50
RATE_SECONDS = 20.0
#: What may start at once at the beginning is over by then.
WARM_SECONDS = 2.0

SLOWEST_RATE = 50.0
GRACE_SECONDS = 60.0


class Run:
    """Workers of one database, and what the broker says of their queue."""

    def __init__(self, client: Any, settings: Settings, workers: list[Child]) -> None:
        self.client, self.settings, self.workers = client, settings, workers
        self.most = 0

    def ended(self) -> int:
        """Return how many tasks have ended; looks at the slots that are held."""
        held, done = (
            self.client.pipeline()
            .hlen(f"celeriac:gate:queue:{QUEUE}")
            .hget(f"celeriac:ledger:{QUEUE}", "done")
            .execute()
        )
        self.most = max(self.most, int(held))
        return int(done or 0)

    def until(self, is_over: Callable[[int], bool], *, seconds: float) -> int:
        """Look until so many have ended; returns how many."""
        deadline = time.monotonic() + seconds
        while not is_over(done := self.ended()):
            if time.monotonic() > deadline:
                ledger = self.client.hgetall(f"celeriac:ledger:{QUEUE}")
                raise BenchmarkError(f"stuck: {ledger}\n{logs(self.settings.directory)}")
            time.sleep(0.002)
        return done


def run(server: Server, size: int) -> dict[str, dict[str, Any]]:
    """Run ``size`` tasks under a concurrency, and as many as take twenty seconds under a rate."""
    with _workers(server, {"concurrency": CONCURRENCY}, size) as at:
        found = {"concurrency": _concurrency(at, size)}
    print(f"gate: {found}", file=sys.stderr, flush=True)
    count = int(STARTS_PER_SECOND * (RATE_SECONDS + 10))
    with _workers(server, {"rate": f"{STARTS_PER_SECOND}/s"}, count) as at:
        found["rate"] = _rate(at)
    return found


@contextmanager
def _workers(server: Server, limits: dict[str, Any], count: int) -> Iterator[Run]:
    server.flush()
    os.environ["BENCH_LIMITS"] = json.dumps(limits)
    workers: list[Child] = []
    with tempfile.TemporaryDirectory(prefix="gate-") as name:
        settings = Settings(
            broker=server.broker_url,
            backend=server.backend_url,
            directory=Path(name),
            store=False,
            prefetch=32,
            batch_size=1,
        )
        try:
            run_module("benchmarks.apps.gated", settings, str(count))
            for number in range(WORKERS):
                name = f"gate{number}@bench"
                workers.append(start("gated", name, CREW, settings, queue=QUEUE))
            wait_ready(workers, settings.directory)
            with redis.Redis.from_url(server.broker_url) as client:
                yield Run(client, settings, workers)
        finally:
            del os.environ["BENCH_LIMITS"]
            stop(workers)


def _concurrency(at: Run, size: int) -> dict[str, Any]:
    begin, deadline = time.monotonic(), GRACE_SECONDS + size / SLOWEST_RATE
    for victim, share in zip(at.workers, KILLS_AT, strict=False):
        goal = int(share * size)
        at.until(goal.__le__, seconds=deadline)
        victim.kill()
    at.until(lambda done: done >= size, seconds=deadline)
    seconds = time.monotonic() - begin
    left = {
        "slots": at.client.hlen(f"celeriac:gate:queue:{QUEUE}"),
        "noted": at.client.hlen("celeriac:gated"),
        "unacked": at.client.hlen("unacked"),
        "waiting": at.client.llen(QUEUE),
    }
    if at.most > CONCURRENCY or any(left.values()):
        raise BenchmarkError(f"at most {at.most} at once, left {left}")
    ran = runs.read(at.settings.directory, QUEUE)
    return {
        "tasks": size,
        "distinct": len({run.number for run in ran}),
        "runs": len(ran),
        "at_once": at.most,
        "stuck": sum(left.values()),
        "seconds": round(seconds, 1),
        "per_second": round(size / seconds),
    }


def _rate(at: Run) -> dict[str, Any]:
    at.until(lambda done: done >= STARTS_PER_SECOND * WARM_SECONDS, seconds=GRACE_SECONDS)
    begin, before = time.monotonic(), at.ended()
    after = at.until(lambda _: time.monotonic() >= begin + RATE_SECONDS, seconds=GRACE_SECONDS)
    rate = (after - before) / (time.monotonic() - begin)
    if abs(rate / STARTS_PER_SECOND - 1) > 0.05:
        raise BenchmarkError(f"{rate:.1f} starts a second instead of {STARTS_PER_SECOND}")
    return {"seconds": RATE_SECONDS, "per_second": round(rate, 2), "allowed": STARTS_PER_SECOND}


STUDY = Study(
    name="gate",
    summary="100,000 tasks under concurrency = 3, two of four workers killed; 50 starts a second",
    size=100_000,
    run=run,
)
