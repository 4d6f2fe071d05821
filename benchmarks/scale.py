"""``scale``: what each further worker costs and brings; joining and leaving under load.

One to eight workers of one process each. First they rest, then single messages wake them, then they
are busy with tasks that sleep, so that no core is the limit, and at last they drain no-op tasks.
Figures of the rest are for a worker and second, all others for a message; ``_to_one`` divides by
what they are with one worker. Processes on the same cores cost each other something whatever they
do, so each count is measured apart as well: every worker with queues that only it consumes.
``_to_apart`` divides by that, and tells what it costs to share a queue.

A worker that joins is to have work within a second, also when the others could hold all there is.
Of those that leave every message must have run once, else the run fails.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import redis

from benchmarks.apps.plan import Plan
from benchmarks.apps.runs import Run
from benchmarks.apps.settings import WARM_QUEUE
from benchmarks.crash import problems
from benchmarks.fleet import Fleet, fleet
from benchmarks.load import Cost, Meter
from benchmarks.measure import add_consumer, wait_for
from benchmarks.runner import Cell, Grid, ratio
from benchmarks.server import Server
from benchmarks.workers import BenchmarkError, Crew, children_of

ONE = Crew(pool="prefork", concurrency=1)
COUNTS = (1, 2, 4, 8)

#: ``WORK`` is consumed from the start, the others when they have been filled.
WORK, SLEEP, DRAIN = "work", "sleep", "drain"
PLAN = Plan(
    side="ours",
    queues={WARM_QUEUE: {}}
    | {
        f"{queue}{number}": {"prefetch": 200} if queue == DRAIN else {}
        for queue in (WORK, SLEEP, DRAIN)
        for number in ("", *range(max(COUNTS)))
    },
)

#: Twice as long as from one look of a worker at all queues to the next (`maintenance.presence`).
REST_SECONDS = 12.0
PUSHES, PUSHES_PER_SECOND = 80, 20.0
SLEEP_SECONDS, SLEEPS = 0.02, 200

JOINS, JOINED_SECONDS, JOIN_BOUND_MS = 3, 0.2, 1_000.0
#: More than two workers may hold, and no more than that (32 each, by default).
JOINED_BACKLOG, JOINED_HELD = 1_000, 60

LEAVES, LEAVING_WORKERS, LEAVING_SECONDS, LEAVING_TASKS = 3, 3, 0.02, 2_000
STOP_SECONDS, END_SECONDS = 20.0, 60.0

COMPARED = ("rest_cpu_ms", "rest_commands", "push_cpu_ms", "sleep_cpu_ms", "noop_cpu_ms")


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """So many workers, at rest and at work.

    Arguments:
        count: how many.
        apart: whether each has queues that no other consumes.
    """

    count: int
    apart: bool = False

    @property
    def name(self) -> str:
        """Return its name in the report."""
        return f"{'apart' if self.apart else 'workers'}_{self.count}"

    def _queues(self, queue: str) -> list[str]:
        """Return the queue of each worker, in the place of one that all of them share."""
        return [f"{queue}{number}" if self.apart else queue for number in range(self.count)]

    def measure(self, server: Server, size: int) -> dict[str, Any]:
        """Rest, wake, sleep, and drain ``size`` no-op tasks."""
        with fleet(server, PLAN) as workers, redis.Redis.from_url(server.broker_url) as client:
            start(workers, work := self._queues(WORK))
            meter = Meter(workers=workers.workers, client=client)
            # Every process has run something, and then nothing for a while.
            for queue in work:
                workers.call(queue, 20, per_second=200)
            time.sleep(1)
            rest = meter.of(lambda: time.sleep(REST_SECONDS))
            push = meter.of(
                lambda: workers.call(work[0], PUSHES, per_second=PUSHES_PER_SECOND, warm=0)
            ).beyond(rest)
            sleep, slept = self._work_off(workers, meter, SLEEP, SLEEPS, seconds=SLEEP_SECONDS)
            noop, _ = self._work_off(workers, meter, DRAIN, size // self.count, seconds=0)
        sleeps = SLEEPS * self.count
        return {
            "rest_cpu_ms": round(rest.cpu_ms / rest.seconds / self.count, 2),
            "rest_commands": round(rest.all_commands / rest.seconds / self.count, 1),
            # The push of the caller is a call of a script as well.
            "push_exchanges": round(push.commands["evalsha"] / PUSHES - 1, 2),
            "push_listens": round(push.commands.get("brpop", 0) / PUSHES, 2),
            "push_cpu_ms": round(push.cpu_ms / PUSHES, 3),
            "sleep_cpu_ms": round(sleep.beyond(rest).cpu_ms / sleeps, 3),
            "sleep_used_percent": round(100 * used(slept, slots=self.count), 1),
            "noop_cpu_ms": round(noop.beyond(rest).cpu_ms / size, 3),
        }

    def _work_off(
        self, workers: Fleet, meter: Meter, queue: str, each: int, *, seconds: float
    ) -> tuple[Cost, list[Run]]:
        """Let every worker consume a backlog of so many messages for each of them."""
        queues = self._queues(queue)
        for name, times in Counter(queues).items():
            workers.fill(name, each * times, seconds=seconds)

        def consume() -> None:
            for number, name in enumerate(queues):
                add_consumer(workers.settings.broker, name, workers=[f"scale{number}@bench"])
            for name, times in Counter(queues).items():
                workers.wait_runs(name, each * times)

        cost = meter.of(consume)
        return cost, [run for name in set(queues) for run in workers.runs(name)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Joining:
    """A worker starts while two others are busy with so many tasks."""

    name: str
    tasks: int

    def measure(self, server: Server, size: int) -> dict[str, Any]:
        """Let a worker join, a few times; ``size`` says nothing here."""
        waits = [self._join(server) for _ in range(JOINS)]
        found = [wait for wait in waits if wait is not None]
        return {
            "joins": JOINS,
            "without_work": len(waits) - len(found),
            "first_start_ms": round(max(found), 1) if found else None,
            "bound_ms": JOIN_BOUND_MS,
            "to_bound": round(max(found) / JOIN_BOUND_MS, 2) if found else None,
        }

    def _join(self, server: Server) -> float | None:
        """Return the milliseconds from its readiness to its first start; None when none came."""
        with fleet(server, PLAN) as workers:
            start(workers, [WORK] * 2)
            workers.fill(WORK, self.tasks, seconds=JOINED_SECONDS)
            workers.start("joined", ONE, WORK)
            workers.wait_ready()
            ready_ns = workers.ready_ns("joined")
            (child,) = children_of(workers.workers["joined"].pid)

            def is_over() -> bool:
                return bool(workers.runs(WORK, pid=child)) or workers.count(WORK) >= self.tasks

            wait_for(is_over, seconds=END_SECONDS)
            first = next(iter(workers.runs(WORK, pid=child)), None)
        return None if first is None else max(0.0, (first.began_ns - ready_ns) / 1e6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaving:
    """Workers are told to end under load, one after the other, and started again."""

    name: str = "leaving"

    def measure(self, server: Server, size: int) -> dict[str, Any]:
        """Let workers leave; a message that did not run once fails the run."""
        took = []
        with fleet(server, PLAN) as workers:
            start(workers, [WORK] * LEAVING_WORKERS)
            workers.fill(WORK, LEAVING_TASKS, seconds=LEAVING_SECONDS)
            for number in range(LEAVES):
                worker = workers.workers[f"scale{number}"]
                begin = time.monotonic()
                worker.stop(STOP_SECONDS)
                took.append(time.monotonic() - begin)
                workers.start(f"scale{number}", ONE, WARM_QUEUE, WORK)
                workers.wait_ready()
            if not workers.waiting(WORK):
                raise BenchmarkError("leaving: the tasks ended before the workers had left")
            if not wait_for(lambda: not server.unfinished(WORK), seconds=END_SECONDS):
                raise BenchmarkError(f"leaving: {server.unfinished(WORK)} tasks did not end")
            ran = [run.number for run in workers.runs(WORK)]
        if wrong := problems(range(LEAVING_TASKS), ran, []):
            raise BenchmarkError("\n".join(["leaving:", *wrong]))
        return {
            "tasks": LEAVING_TASKS,
            "leaves": LEAVES,
            "missing": 0,
            "more_than_once": 0,
            "longest_leave_s": round(max(took), 2),
        }


def start(workers: Fleet, queues: Sequence[str]) -> None:
    """Start a worker of one process for each of these queues."""
    for number, queue in enumerate(queues):
        workers.start(f"scale{number}", ONE, WARM_QUEUE, queue)
    workers.wait_ready()


def used(runs: Sequence[Run], *, slots: int) -> float:
    """Return the part of the slots that ran something, from the first start to the last end.

    >>> runs = [Run(number=0, sent_ns=0, began_ns=began, ended_ns=began + 10) for began in (0, 10)]
    >>> used(runs, slots=2)
    0.5
    """
    span = max(run.ended_ns for run in runs) - min(run.began_ns for run in runs)
    return sum(run.ended_ns - run.began_ns for run in runs) / span / slots


def compare(cases: Mapping[str, dict[str, Any]]) -> None:
    """Add what a worker or a message costs, divided by what it does with one worker, and apart."""
    for name, case in cases.items():
        kind, _, count = name.partition("_")
        beside = {"to_one": f"{kind}_1", "to_apart": f"apart_{count}"}
        if kind not in ("workers", "apart"):
            continue
        for suffix, other in beside.items():
            if name != other:
                found = cases.get(other, {})
                case.update({f"{f}_{suffix}": ratio(case[f], found.get(f)) for f in COMPARED})


def cells() -> Iterator[Cell]:
    """Yield every cell."""
    for count in COUNTS:
        yield Workers(count=count)
        yield Workers(count=count, apart=True)
    yield Joining(name="joining_backlog", tasks=JOINED_BACKLOG)
    yield Joining(name="joining_held", tasks=JOINED_HELD)
    yield Leaving()


GRID = Grid(
    name="scale",
    summary="1, 2, 4, 8 workers: what they cost at rest and a message; joining and leaving",
    size=20_000,
    cells=cells,
    compare=compare,
    in_all=False,
)
