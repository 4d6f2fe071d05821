"""``trickle``: how full batches are, and how long items wait, while items come one by one.

The other scenarios begin with a backlog, which fills batches whatever the worker does. Here items
arrive steadily at busy slots, first at a seventh of what a worker can do at most (prefork -c2: 100
items a second, 100 a batch, calls of 0.3 s), then in bursts, then steadily again, and at last at
50, 80 and 95 % of it. A burst on a fresh worker shows what the worker had to lose; `calls_to_full`
is how many call times after a burst all slots run full batches. `keys`: a thousand keys, items of
which come in turn. `single_at_80_percent`: calls of a plain task, which take as long as those of a
batch, at 80 % of what the slots can do of these.

The same load on celery-batches is beside it (`elsewhere`), in an environment of its own, which is
made from the package index for the time of the run; without one that is left out, and said.

It asserts nothing about time. Every item and every plain task must have run once, and have ended as
done by the broker's count, else the run fails.
"""

from __future__ import annotations

import struct
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any, TypeAlias, get_args

from benchmarks.apps.settings import Settings
from benchmarks.measure import wait_for
from benchmarks.queue_size import quantile
from benchmarks.runner import Study
from benchmarks.server import Server
from benchmarks.workers import (
    QUIET,
    BenchmarkError,
    Crew,
    Pool,
    environment,
    environment_with,
    logs,
    run_json,
    run_module,
    start,
    stop,
    wait_ready,
)
from tasks.child import Child

# As in `benchmarks.apps.trickled`, which is imported in the workers' processes only.
QUEUE, SINGLE_QUEUE, KEYED_QUEUE = "trickle", "single", "keys"
MAX_SIZE = 100
CALL_SECONDS = 0.3
CALL = struct.Struct("=qqi")

STEADY_RATE = 100
STEADY_SECONDS = 5
LOADED_SECONDS = 8
LOADS_PERCENT = (50, 80, 95)
SINGLE_PERCENT = 80
KEYED_ITEMS = 4_000
BURSTS = 2
DRAIN_SECONDS = 60.0

#: The other library, which does not run on the Celery that we need.
PACKAGES = ("celery-batches", "celery[redis]<5.7")
ELSEWHERE = Path(__file__).parent / "apps" / "elsewhere.py"
ELSEWHERE_POOLS: tuple[Pool, ...] = ("prefork", "threads")

MakeWorker: TypeAlias = "Callable[[Server, Crew], AbstractContextManager[Load]]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One run of the batch task; all times in nanoseconds of the machine's monotonic clock."""

    began: int
    took: int
    waits: tuple[int, ...]


def run(server: Server, size: int) -> dict[str, dict[str, Any]]:
    """Send each pool's worker its trickle, and bursts of ``size`` items."""
    found: dict[str, dict[str, Any]] = {}

    def add(name: str, cases: Mapping[str, dict[str, Any]]) -> None:
        for case, figures in cases.items():
            found[f"{name}_{case}"] = figures
            print(f"trickle: {name} {case}: {figures}", file=sys.stderr, flush=True)

    for pool in get_args(Pool):
        add(pool, _pool(server, Crew(pool=pool), size, _worker))
    with tempfile.TemporaryDirectory(prefix="celery-batches-") as folder:
        try:
            python = environment_with(Path(folder), PACKAGES)
        except BenchmarkError as error:
            print(f"trickle: without celery-batches: {error}", file=sys.stderr, flush=True)
            return found
        for pool in ELSEWHERE_POOLS:
            case = _pool(server, Crew(pool=pool), size, partial(_elsewhere, python))
            add(f"elsewhere_{pool}", case)
    return found


def _pool(server: Server, crew: Crew, size: int, worker: MakeWorker) -> dict[str, dict[str, Any]]:
    slots = 1 if crew.pool == "solo" else crew.concurrency
    with worker(server, crew) as load:
        fresh = _items_per_second(load.burst(size))
    capacity = slots * MAX_SIZE / CALL_SECONDS
    with worker(server, crew) as load:
        cases = {"steady": _waits(load.trickle(STEADY_RATE, STEADY_SECONDS))}
        for number in range(1, BURSTS + 1):
            calls = load.burst(size)
            cases[f"steady_after_{number}"] = _waits(load.trickle(STEADY_RATE, STEADY_SECONDS))
            cases[f"burst_{number}"] = _burst(calls, fresh, slots)
        for percent in LOADS_PERCENT:
            calls = load.trickle(capacity * percent / 100, LOADED_SECONDS)
            cases[f"at_{percent}_percent"] = _waits(calls)
        if load.is_ours:
            cases["keys"] = _batches(load.keys(KEYED_ITEMS))
            rate = slots / CALL_SECONDS * SINGLE_PERCENT / 100
            calls = load.trickle(rate, LOADED_SECONDS, "single")
            cases[f"single_at_{SINGLE_PERCENT}_percent"] = _waits(calls)
            _check_endings(server)
    return dict(sorted(cases.items(), key=lambda case: "fresh_items_s" in case[1]))


@dataclass(slots=True, kw_only=True)
class Load:
    """Publishes to one worker, and reads what it noted."""

    settings: Settings
    publish: Callable[..., dict[str, Any]]
    is_ours: bool
    seen: int = 0

    def trickle(self, rate: float, seconds: int, *task: str) -> list[Call]:
        """Send items, or calls of another task, steadily; return the calls that they ran in."""
        return self._send(f"{rate:g}", str(seconds), *task)

    def burst(self, count: int) -> list[Call]:
        """Send items at once; return the calls that they ran in."""
        return self._send("burst", str(count))

    def keys(self, count: int) -> list[Call]:
        """Send items of many keys at once; return the calls that they ran in."""
        return self._send("keys", str(count))

    def _send(self, *arguments: str) -> list[Call]:
        sent = int(self.publish(*arguments)["count"])
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


def _check_endings(server: Server) -> None:
    """Compare what became of items and of plain tasks: all are done."""
    for queue in (QUEUE, SINGLE_QUEUE, KEYED_QUEUE):
        wait_for(partial(_is_settled, server, queue), seconds=DRAIN_SECONDS)
        counts = server.ledger(queue)
        if counts["done"] != counts["accepted"]:
            raise BenchmarkError(
                f"queue {queue}: expected all that was accepted done, got {counts}"
            )


def _is_settled(server: Server, queue: str) -> bool:
    return not server.unfinished(queue)


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
    with _settings(server) as settings:
        queues = f"{QUEUE},{SINGLE_QUEUE},{KEYED_QUEUE}"
        workers = [start("trickled", "trickle@bench", crew, settings, queue=queues)]
        publish = partial(run_module, "benchmarks.apps.trickled", settings)
        with _running(workers, Load(settings=settings, publish=publish, is_ours=True)) as load:
            yield load


@contextmanager
def _elsewhere(python: Path, server: Server, crew: Crew) -> Iterator[Load]:
    """Run one worker of celery-batches."""
    with _settings(server) as settings:
        variables = environment(settings) | {"PYTHONPATH": str(ELSEWHERE.parent)}
        command = [str(python), "-m", "celery", "-A", f"{ELSEWHERE.stem}:app", "worker"]
        command += ["-n", "elsewhere@bench", *crew.options(), *QUIET]
        log = settings.directory / "elsewhere.log"
        workers = [Child(command, log=log, cwd=ELSEWHERE.parent, env=variables).start()]
        publish = partial(run_json, [str(python), str(ELSEWHERE)], variables)
        with _running(workers, Load(settings=settings, publish=publish, is_ours=False)) as load:
            yield load


@contextmanager
def _running(workers: list[Child], load: Load) -> Iterator[Load]:
    try:
        wait_ready(workers, load.settings.directory)
        load.burst(1)
        yield load
    finally:
        stop(workers)


@contextmanager
def _settings(server: Server) -> Iterator[Settings]:
    server.flush()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        settings = Settings(
            broker=server.broker_url,
            backend=server.backend_url,
            directory=Path(name),
        )
        yield settings


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


def _burst(calls: list[Call], fresh: float, slots: int = 1) -> dict[str, Any]:
    rate = _items_per_second(calls)
    return {
        **_batches(calls),
        "calls_to_full": _calls_to_full(calls, slots),
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


def _calls_to_full(calls: list[Call], slots: int) -> float | None:
    """Return after how many call times since the burst all slots run full batches."""
    full = [call.began for call in calls if len(call.waits) >= MAX_SIZE]
    if len(full) < slots:
        return None
    sent = min(call.began - max(call.waits) for call in calls)
    return round((full[slots - 1] - sent) / median(call.took for call in calls), 2)


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
