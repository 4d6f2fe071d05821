"""The workers of one cell of a grid, what is sent to them and read from them."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from benchmarks.apps import runs
from benchmarks.apps.plan import Plan
from benchmarks.apps.runs import Run, Sent
from benchmarks.apps.settings import Settings
from benchmarks.measure import MEMORY, wait_for
from benchmarks.server import Server
from benchmarks.workers import (
    READY_SECONDS,
    BenchmarkError,
    Crew,
    Side,
    check_alive,
    logs,
    run_module,
    start,
)
from tasks.child import Child

#: Calls that open connections before those that count.
WARM_CALLS = 4
CALL_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """Calls that were made: how long each waited, in order of length, and how many never ran.

    The latter have waited for as long as somebody had the patience.
    """

    waits_ms: list[float]
    unstarted: int


@dataclass(slots=True, kw_only=True)
class Fleet:
    """The workers of one cell by their names, and the queues that they share.

    Arguments:
        app: the app of its workers, `benchmarks.apps.queued` or one with the same commands.
    """

    settings: Settings
    app: Side = "queued"
    workers: dict[str, Child] = field(default_factory=dict)

    def start(self, name: str, crew: Crew, *queues: str) -> None:
        """Start a worker; `wait_ready` returns when all that were started consume."""
        queue = ",".join(queues)
        self._ready(name).unlink(missing_ok=True)
        self.workers[name] = start(self.app, f"{name}@bench", crew, self.settings, queue=queue)

    def wait_ready(self) -> None:
        """Return when every worker consumes."""

        def is_ready() -> bool:
            self.check_alive()
            return all(self._ready(name).exists() for name in self.workers)

        if not wait_for(is_ready, seconds=READY_SECONDS):
            problem = f"workers not ready in {READY_SECONDS:g} s"
            raise BenchmarkError(f"{problem}\n{logs(self.settings.directory)}")

    def ready_ns(self, name: str) -> int:
        """Return when a worker was ready, by the machine's monotonic clock."""
        # Files have the time of day.
        return self._ready(name).stat().st_mtime_ns - (time.time_ns() - time.monotonic_ns())

    def _ready(self, name: str) -> Path:
        return self.settings.directory / f"ready.{name}@bench"

    def fill(
        self,
        queue: str,
        count: int,
        *,
        seconds: float,
        size_bytes: int = 0,
        computes: bool = False,
    ) -> None:
        """Put messages into a queue."""
        self._run(
            "fill",
            queue=queue,
            count=count,
            seconds=seconds,
            size_bytes=size_bytes,
            computes=computes,
        )

    def call(
        self,
        queue: str,
        count: int,
        *,
        per_second: float,
        warm: int = WARM_CALLS,
        seconds: float = 0.0,
        patience_seconds: float | None = None,
    ) -> Calls:
        """Make calls, and return their waits when all have run.

        Arguments:
            seconds: what each of them takes.
            patience_seconds: when to give up what has not run, after the last call; None to raise.
        """
        sent = self.send(queue, count, per_second=per_second, warm=warm, seconds=seconds)
        if patience_seconds is None:
            self.wait_runs(queue, count + warm)
        else:
            wait_for(lambda: self.count(queue) >= count + warm, seconds=patience_seconds)
        called_ns = [one.called_ns for one in sent]
        return calls_of(called_ns, self.runs(queue), now_ns=time.monotonic_ns())

    def send(
        self, queue: str, count: int, *, per_second: float, warm: int, seconds: float = 0.0
    ) -> list[Sent]:
        """Make calls, and return them by their numbers as soon as all have been made."""
        self.forget(queue)
        arguments = {"count": count, "per_second": per_second, "warm": warm, "seconds": seconds}
        return [Sent(*one) for one in self._run("call", queue=queue, **arguments)["made"]]

    def wait_runs(self, queue: str, count: int) -> None:
        """Return when so many runs have ended."""
        if not wait_for(lambda: self.count(queue) >= count, seconds=CALL_SECONDS):
            raise BenchmarkError(
                f"queue {queue!r}: {self.count(queue)} of {count} runs ended in "
                f"{CALL_SECONDS:g} s\n{logs(self.settings.directory)}"
            )

    def runs(self, queue: str, *, pid: int | None = None) -> list[Run]:
        """Return the runs of a queue that have ended, of one process or of all."""
        return runs.read(self.settings.directory, queue, pid=pid)

    def count(self, queue: str) -> int:
        """Return how many runs have ended."""
        return runs.count(self.settings.directory, queue)

    def forget(self, queue: str) -> None:
        """Forget the runs of a queue."""
        runs.forget(self.settings.directory, queue)

    def waiting(self, queue: str) -> int:
        """Return how many messages wait at the broker."""
        with redis.Redis.from_url(self.settings.broker) as client:
            return int(client.llen(queue))

    def check_backlog(self, queue: str) -> None:
        """Refuse a figure that was measured when there was no backlog any more."""
        self.check_alive()
        if not self.waiting(queue):
            raise BenchmarkError(f"the backlog of {queue!r} ended before the calls did")

    def check_alive(self) -> None:
        """Raise when a worker has ended by itself."""
        check_alive(list(self.workers.values()), self.settings.directory)

    def _run(self, verb: str, **arguments: object) -> dict[str, Any]:
        return run_module(f"benchmarks.apps.{self.app}", self.settings, verb, json.dumps(arguments))


def calls_of(sent_ns: Sequence[int], ran: Sequence[Run], *, now_ns: int) -> Calls:
    """Return what became of calls.

    Arguments:
        sent_ns: when each was made, by its number.
        ran: those that have run.
        now_ns: when the others were given up.

    >>> ran = [Run(number=1, sent_ns=0, began_ns=2_000_000, ended_ns=2_000_000)]
    >>> calls_of([0, 0], ran, now_ns=9_000_000)
    Calls(waits_ms=[2.0, 9.0], unstarted=1)
    """
    missing = set(range(len(sent_ns))) - {run.number for run in ran}
    given_up = [(now_ns - sent_ns[number]) / 1e6 for number in missing]
    waits_ms = sorted([*(run.waited_ms for run in ran), *given_up])
    return Calls(waits_ms=waits_ms, unstarted=len(missing))


@contextmanager
def fleet(server: Server, plan: Plan, *, app: Side = "queued") -> Iterator[Fleet]:
    """Make an empty fleet for a plan; its workers are killed at the end, with what they run."""
    server.flush()
    with tempfile.TemporaryDirectory(prefix="bench-", dir=MEMORY) as name:
        settings = Settings(
            broker=server.broker_url,
            backend=server.backend_url,
            directory=Path(name),
        )
        plan.write(settings.directory)
        made = Fleet(settings=settings, app=app)
        try:
            yield made
            made.check_alive()
        finally:
            for worker in made.workers.values():
                worker.kill()
