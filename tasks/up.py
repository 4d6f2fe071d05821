"""Runs the Procfile in one terminal: ``python -m tasks.up [--workers N]``, until Ctrl-C.

honcho does it, with three changes. A stop reaches the main process of each line, not its whole
group: a worker finishes what its pool runs instead of losing the pool. There is time for that.
And a worker that ends by itself is started again; the end of another line is the end of all.
"""

from __future__ import annotations

import argparse
import io
import os
import queue
import signal
import sys
import threading
import time
from multiprocessing import Process
from pathlib import Path
from typing import Any

import honcho.manager
import honcho.process
from honcho.compat import ProcessManager
from honcho.environ import expand_processes, parse_procfile
from honcho.printer import Message, Printer

#: Two workers, so that one can be restarted while the other goes on.
WORKERS = 2

#: Seconds from the first process that ends to the end of all by force.
STOP_SECONDS = 60

#: Seconds from the end of a worker to its next start.
RESTART_PAUSE_SECONDS = 1.0

#: A worker that ends more often than this cannot run here: its end is then the end of all.
RESTARTS_PER_MINUTE = 3


class MainProcessOnly(ProcessManager):
    """Asks only the process that a line of the Procfile has become; force still ends the group."""

    def terminate(self, pid: int) -> None:
        """Ask it to end."""
        try:
            os.kill(pid, signal.SIGTERM)
        except ProcessLookupError:
            pass


class GroupLeader(honcho.process.Popen):
    """The main process of a line; when it ends, what it has left in its group is ended too.

    On Linux the pool of a killed worker ends with it, elsewhere it may not; what its tasks have
    started outlives it everywhere. Each would hold the line's output open.
    """

    def __init__(self, command: str, **kwargs: Any) -> None:
        super().__init__(command, **kwargs)
        threading.Thread(target=self._end_group, daemon=True).start()

    def _end_group(self) -> None:
        self.wait()
        ProcessManager().kill(self.pid)


class Manager(honcho.manager.Manager):
    """honcho's manager, which does not learn of the end of a worker that is started again."""

    _processes: dict[str, Any]

    def add_process(self, name: str, cmd: str, **kwargs: Any) -> Any:
        """Add a line."""
        process = super().add_process(name, cmd, **kwargs)
        if _is_worker(name):
            process._child_ctor = GroupLeader
        return process

    def _killall(self, force: bool = False) -> None:
        # What has not said yet that it started is asked when it does: see `Events`.
        every = self._processes
        self._processes = {name: one for name, one in every.items() if "pid" in one}
        try:
            super()._killall(force)
        finally:
            self._processes = every

    def _start(self) -> None:
        super()._start()
        self.events: Any = Events(self.events, manager=self)


class Events:
    """What the lines report, as honcho's manager reads it; keeps the ends of workers to itself."""

    def __init__(self, written: Any, *, manager: Manager) -> None:
        self._written = written
        self._manager = manager
        self._ends: dict[str, list[float]] = {}
        self._paused: dict[str, Message] = {}

    def get(self, timeout: float) -> Message:
        """Return the next event; raise `queue.Empty` when there is none."""
        stopping = self._manager._terminating
        if stopping and self._paused:
            return self._paused.popitem()[1]
        self._start_due()
        event = self._written.get(timeout=timeout)
        stopping = self._manager._terminating
        if event.type == "start" and stopping:
            self._manager._procmgr.terminate(event.data["pid"])  # it was not asked with the others
        if event.type == "stop" and not stopping and self._may_restart(event):
            raise queue.Empty
        return event

    def _start_due(self) -> None:
        now = time.monotonic()
        for name in list(self._paused):
            if now >= self._ends[name][-1] + RESTART_PAUSE_SECONDS:
                del self._paused[name]
                run = self._manager._processes[name]["obj"].run
                Process(name=name, target=run, args=(self._written, True)).start()

    def _may_restart(self, end: Message) -> bool:
        if not _is_worker(end.name):
            return False
        now = time.monotonic()
        recent = [at for at in self._ends.get(end.name, ()) if at > now - 60]
        self._ends[end.name] = [*recent, now]
        what = f"{end.name} ended (rc={end.data['returncode']})"
        if len(recent) >= RESTARTS_PER_MINUTE:
            self._manager._system_print(f"{what} {len(recent) + 1} times in a minute: giving up\n")
            return False
        self._paused[end.name] = end
        self._manager._system_print(f"{what}, starts again in {RESTART_PAUSE_SECONDS:g} s\n")
        return True


def _is_worker(name: str) -> bool:
    return name.partition(".")[0] == "worker"


def main(arguments: list[str] | None = None) -> int:
    """Run until Ctrl-C or until broker or Flower ends; 0 when we were asked to stop."""
    options = _options(arguments)
    procfile = parse_procfile(options.procfile.read_text())
    processes = expand_processes(
        procfile.processes, concurrency={"worker": options.workers}, env=_environment()
    )
    honcho.manager.KILL_WAIT = STOP_SECONDS
    manager = Manager(Printer(_output()))
    manager._procmgr = MainProcessOnly()
    for process in processes:
        manager.add_process(
            process.name, process.cmd, quiet=process.quiet, env=process.env, cwd=os.getcwd()
        )
    manager.loop()
    asked_to_stop = {128 + signal.SIGINT, 128 + signal.SIGTERM}
    return 0 if manager.returncode in asked_to_stop else 1


def _output() -> io.TextIOWrapper:
    """The standard output, without the buffer that may not be written to while it is written to.

    Ctrl-C may come in the middle of a line, and its handler prints one.
    """
    raw: Any = io.FileIO(sys.stdout.fileno(), "w", closefd=False)
    return io.TextIOWrapper(raw, encoding=sys.stdout.encoding, write_through=True)


def _environment() -> dict[str, str]:
    """Ours, with this interpreter's commands first on the path and output as it is written."""
    inherited = {name: value for name, value in os.environ.items() if name != "PORT"}
    bin_dir = str(Path(sys.executable).parent)
    path = os.pathsep.join([bin_dir, inherited.get("PATH", os.defpath)])
    return {**inherited, "PATH": path, "PYTHONUNBUFFERED": "1"}


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tasks.up", description="Run broker, workers and Flower until Ctrl-C."
    )
    parser.add_argument("--workers", type=int, default=WORKERS, metavar="N")
    parser.add_argument("--procfile", type=Path, default=Path("Procfile"))
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
