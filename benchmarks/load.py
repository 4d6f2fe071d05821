"""What workers cost: time of a core, from ``/proc``, and commands of the server, from INFO."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from benchmarks.workers import children_of
from tasks.child import Child

#: What has ended is settled within milliseconds, which belongs to its cost.
SETTLE_SECONDS = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What some seconds took; commands are those of the server, from scripts as well."""

    seconds: float
    cpu_ms: float
    commands: Mapping[str, float]

    @property
    def all_commands(self) -> float:
        """Return how many commands the server ran."""
        return sum(self.commands.values())

    def beyond(self, rest: Cost) -> Cost:
        """Return what it took more than resting for as long.

        >>> rest = Cost(seconds=10.0, cpu_ms=20.0, commands={"brpop": 10})
        >>> Cost(seconds=2.0, cpu_ms=50.0, commands={"brpop": 42, "evalsha": 5}).beyond(rest)
        Cost(seconds=2.0, cpu_ms=46.0, commands={'brpop': 40.0, 'evalsha': 5.0})
        """
        times = self.seconds / rest.seconds
        return Cost(
            seconds=self.seconds,
            cpu_ms=self.cpu_ms - rest.cpu_ms * times,
            commands={
                name: count - rest.commands.get(name, 0) * times
                for name, count in self.commands.items()
            },
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Meter:
    """Measures what workers cost while something happens."""

    workers: Mapping[str, Child]
    client: redis.Redis

    def of(self, action: Callable[[], object]) -> Cost:
        """Do it, and return what it took."""
        begin, cpu, commands = time.monotonic(), self._cpu_ms(), self._commands()
        action()
        time.sleep(SETTLE_SECONDS)
        after = self._commands()
        return Cost(
            cpu_ms=self._cpu_ms() - cpu,
            commands={name: after[name] - commands.get(name, 0) for name in after},
            seconds=time.monotonic() - begin,
        )

    def _cpu_ms(self) -> float:
        parents = [worker.pid for worker in self.workers.values()]
        pids = [pid for parent in parents for pid in (parent, *children_of(parent))]
        return sum(process_ns(pid) for pid in pids) / 1e6

    def _commands(self) -> dict[str, int]:
        stats: Any = self.client.info("commandstats")
        counts = {name.removeprefix("cmdstat_"): int(one["calls"]) for name, one in stats.items()}
        return {name: count for name, count in counts.items() if name != "info"}


def process_ns(pid: int) -> int:
    """Return the nanoseconds of a core that the threads of a process have used."""
    # ``stat`` counts in ticks of 10 ms.
    return sum(_thread_ns(path) for path in Path(f"/proc/{pid}/task").glob("*/schedstat"))


def _thread_ns(path: Path) -> int:
    try:
        return int(path.read_text().split()[0])
    except OSError:  # it has ended meanwhile
        return 0
