"""The workers: started, deployed, killed, and watched for deaths that nobody caused.

A worker that has ended is started again under its name, as a supervisor does; `tick` does all that
is due and never waits.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.apps.settings import Settings
from benchmarks.life.plan import CONCURRENCY, QUEUES, WORKERS, Event
from benchmarks.workers import Crew, Pool, children_of, start, stop
from tasks.child import Child

#: A pool process that goes with its worker goes sooner than this.
ALONE_SECONDS = 3.0

#: A supervisor waits for so long before it kills what was told to end.
PATIENCE_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """A process that has ended: by the run's event, or by itself (None).

    ``processes`` are the worker's own and those of its pool, ``at`` is when it was told to end.
    """

    processes: frozenset[int]
    cause: Event | None
    at: float
    what: str


@dataclass(slots=True)
class Worker:
    """One worker of the fleet.

    ``killed``: pool processes that the run has killed; ``gone``: those that nobody has, and since
    when.
    """

    name: str
    process: Child
    ready: Path
    pool: set[int] = field(default_factory=set)
    killed: set[int] = field(default_factory=set)
    gone: dict[int, float] = field(default_factory=dict)
    told_at: float | None = None

    @property
    def is_ready(self) -> bool:
        """Return whether it consumes, and nobody has told it to end."""
        return self.told_at is None and self.ready.exists()


class Fleet:
    """All workers, and how those that are gone have ended."""

    def __init__(self, pool: Pool, settings: Settings) -> None:
        self._crew = Crew(pool=pool, concurrency=CONCURRENCY[pool])
        self._settings = settings
        self.workers: list[Worker] = []
        self.ends: list[End] = []
        self.overdue = 0

    def start(self) -> None:
        """Start all workers."""
        self.workers = [self._started(f"life{number}@bench") for number in range(WORKERS)]

    def _started(self, name: str) -> Worker:
        ready = self._settings.directory / f"ready.{name}"
        ready.unlink(missing_ok=True)
        queues = ",".join(QUEUES)
        process = start("living", name, self._crew, self._settings, queue=queues)
        return Worker(name, process, ready)

    def stop(self) -> None:
        """End all of them."""
        stop([worker.process for worker in self.workers])

    @property
    def is_ready(self) -> bool:
        """Return whether every worker consumes."""
        return all(worker.is_ready for worker in self.workers)

    def tick(self) -> None:
        """Notice what has ended, and start it again."""
        for place, worker in enumerate(self.workers):
            if not worker.process.running:
                self._note_end(worker)
                self.workers[place] = self._started(worker.name)
            elif worker.told_at is None:
                self._look_at_pool(worker)
            elif time.monotonic() > worker.told_at + PATIENCE_SECONDS:
                self.overdue += 1
                worker.process.kill()

    def _note_end(self, worker: Worker) -> None:
        if worker.told_at is None:
            what = f"{worker.name} ended by itself with {worker.process.code}"
            pids = {worker.process.pid, *worker.pool, *worker.gone}
            self._ended(pids, None, time.monotonic(), what)

    def _ended(self, pids: Iterable[int], cause: Event | None, at: float, what: str) -> None:
        self.ends.append(End(processes=frozenset(pids), cause=cause, at=at, what=what))

    def _look_at_pool(self, worker: Worker) -> None:
        """Note pool processes that have gone while their worker lives on."""
        now = time.monotonic()
        pool = set(children_of(worker.process.pid)) - worker.killed
        if worker.is_ready:
            worker.gone |= dict.fromkeys(worker.pool - pool, now)
        worker.pool = pool
        for pid in [pid for pid, since in worker.gone.items() if now > since + ALONE_SECONDS]:
            what = f"pool process {pid} of {worker.name} ended by itself"
            self._ended({pid}, None, worker.gone.pop(pid), what)

    # -- what the run does to them; False when nobody can be hit right now

    def deploy(self, number: int) -> bool:
        """Tell a worker's whole process group to end, as a supervisor does."""
        worker = self._victim(number)
        if worker is None:
            return False
        worker.told_at = time.monotonic()
        pids = {worker.process.pid, *worker.pool}
        self._ended(pids, Event.DEPLOY, worker.told_at, worker.name)
        os.killpg(worker.process.pid, signal.SIGTERM)
        return True

    def kill_worker(self, number: int) -> bool:
        """Kill a worker and its pool."""
        worker = self._victim(number)
        if worker is None:
            return False
        worker.told_at = time.monotonic()
        pids = {worker.process.pid, *worker.pool}
        self._ended(pids, Event.WORKER, worker.told_at, worker.name)
        worker.process.kill()
        return True

    def kill_pool_process(self, number: int) -> bool:
        """Kill one process of a worker's pool."""
        worker = self._victim(number)
        if worker is None or not worker.pool:
            return False
        pid = min(worker.pool)
        worker.pool.discard(pid)
        worker.killed.add(pid)
        self._ended({pid}, Event.POOL, time.monotonic(), worker.name)
        os.kill(pid, signal.SIGKILL)
        return True

    def _victim(self, number: int) -> Worker | None:
        """Return the workers in turns, None while one of them is away."""
        if not self.is_ready:
            return None
        worker = self.workers[number % len(self.workers)]
        self._look_at_pool(worker)
        return worker

    def memory(self) -> dict[str, tuple[int, int]]:
        """Return process id and resident bytes of every process of the fleet, by its place."""
        found = {}
        for worker in self.workers:
            short = worker.name.partition("@")[0]
            found[short] = (worker.process.pid, resident_bytes(worker.process.pid))
            for place, pid in enumerate(sorted(worker.pool)):
                found[f"{short} pool {place}"] = (pid, resident_bytes(pid))
        return found


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process, 0 when it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
