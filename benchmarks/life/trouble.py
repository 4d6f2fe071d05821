"""What happens to the platform, and the evidence that it did."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from benchmarks.apps.settings import Settings
from benchmarks.life.fleet import Fleet
from benchmarks.life.plan import SINK_AWAY, Event, Happening
from benchmarks.life.proxy import COUNTS_FILE
from tasks.child import Child

#: The server answers BUSY once a script has run for so long.
BUSY_AFTER_MS = 100

#: Computes for so many seconds of processor time, and writes nothing.
SLOW_SCRIPT = "local till = os.clock() + tonumber(ARGV[1]); while os.clock() < till do end"


@dataclass(slots=True)
class Trouble:
    """Begins and ends the events at their times.

    Arguments:
        began: when the plan's time 0 was.
        happenings: the plan's events, in order.
    """

    fleet: Fleet
    broker: redis.Redis
    results: redis.Redis
    proxy: Child
    settings: Settings
    began: float
    happenings: list[Happening]
    happened: list[tuple[Event, float, float]] = field(default_factory=list)
    _undo: list[tuple[float, Callable[[], None]]] = field(default_factory=list)
    _scripts: list[threading.Thread] = field(default_factory=list)
    _counts: Counter[Event] = field(default_factory=Counter)

    def tick(self) -> None:
        """Do what is due; an event that finds nobody to hit is tried again."""
        now = time.monotonic()
        for due, undo in [one for one in self._undo if now >= one[0]]:
            self._undo.remove((due, undo))
            undo()
        healed_at = self.happened[-1][2] if self.happened else 0.0
        if self.happenings and now >= max(self.began + self.happenings[0].at, healed_at):
            next_ = self.happenings[0]
            if self._begin(next_):
                self.happenings.pop(0)
                self.happened.append((next_.event, now, now + next_.healed_at - next_.at))
                print(
                    f"life: {now - self.began:5.1f} s: {next_.event}", file=sys.stderr, flush=True
                )

    @property
    def is_over(self) -> bool:
        """Return whether everything has happened and was undone."""
        running = any(script.is_alive() for script in self._scripts)
        return not (self.happenings or self._undo or running)

    def undo_all(self) -> None:
        """End what lasts."""
        for _, undo in self._undo:
            undo()
        self._undo.clear()

    def _begin(self, happening: Happening) -> bool:
        if not self.fleet.is_ready:
            return False
        count, lasts = self._counts[happening.event], happening.until - happening.at
        match happening.event:
            case Event.DEPLOY:
                done = self.fleet.deploy(count)
            case Event.WORKER:
                done = self.fleet.kill_worker(count)
            case Event.POOL:
                done = self.fleet.kill_pool_process(count + 1)
            case Event.SINK:
                away = self.settings.directory / SINK_AWAY
                away.touch()
                done = self._later(lasts, away.unlink)
            case Event.FULL:
                self.results.config_set("maxmemory", 1)
                done = self._later(lasts, lambda: self.results.config_set("maxmemory", 0))
            case Event.SILENT:
                self.proxy.send(signal.SIGUSR1)
                done = True
            case Event.SCRIPT:
                self._run_script(lasts)
                done = True
            case Event.BURST:
                done = True
        self._counts[happening.event] += done
        return done

    def _later(self, seconds: float, undo: Callable[[], Any]) -> bool:
        self._undo.append((time.monotonic() + seconds, undo))
        return True

    def _run_script(self, seconds: float) -> None:
        def run() -> None:
            # It goes on at the server for longer than a client waits.
            with suppress(redis.TimeoutError):
                self.broker.eval(SLOW_SCRIPT, 0, str(seconds))

        script = threading.Thread(target=run, daemon=True)
        script.start()
        self._scripts.append(script)

    def evidence(self) -> dict[str, dict[str, Any]]:
        """Return what shows of each event that it happened, apart from what tasks noted."""
        fleet = Counter(end.cause for end in self.fleet.ends)
        return {
            Event.DEPLOY: {
                "ended_workers": fleet[Event.DEPLOY] - self.fleet.overdue,
                "overdue_workers": self.fleet.overdue,
            },
            Event.FULL: {"refused_commands": errors(self.results, "OOM")},
            Event.SILENT: silent_counts(self.settings.directory),
            Event.POOL: {"killed_processes": fleet[Event.POOL]},
            Event.WORKER: {"killed_workers": fleet[Event.WORKER]},
            Event.SCRIPT: {"busy_replies": errors(self.broker, "BUSY")},
        }


def errors(client: redis.Redis, code: str) -> int:
    """Return how many commands a server has refused with a code."""
    info: Any = client.info("errorstats")
    return int(info.get(f"errorstat_{code}", {}).get("count", 0))


def silent_counts(directory: Path) -> dict[str, int]:
    """Return what the proxy has swallowed."""
    with contextlib.suppress(OSError, ValueError):
        counts: dict[str, int] = json.loads((directory / COUNTS_FILE).read_text())
        return {f"{name}_connections": count for name, count in counts.items()}
    return {}
