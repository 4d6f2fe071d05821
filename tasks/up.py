"""Runs the Procfile in one terminal: ``python -m tasks.up [--workers N]``, until Ctrl-C.

honcho does it, with two changes. A stop reaches the main process of each line, not its whole group:
a worker finishes what its pool runs instead of losing the pool. And it gives them time for that.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

import honcho.manager
from honcho.compat import ProcessManager
from honcho.environ import expand_processes, parse_procfile
from honcho.printer import Printer

#: Two workers, so that one can be restarted while the other goes on.
WORKERS = 2

#: Seconds from the first process that ends to the end of all by force.
STOP_SECONDS = 60


class MainProcessOnly(ProcessManager):
    """Asks only the process that a line of the Procfile has become; force still ends the group."""

    def terminate(self, pid: int) -> None:
        """Ask it to end."""
        try:
            os.kill(pid, signal.SIGTERM)
        except ProcessLookupError:
            pass


def main(arguments: list[str] | None = None) -> int:
    """Run until Ctrl-C or until a process ends; 0 when we were asked to stop."""
    options = _options(arguments)
    procfile = parse_procfile(options.procfile.read_text())
    processes = expand_processes(
        procfile.processes, concurrency={"worker": options.workers}, env=_environment()
    )
    honcho.manager.KILL_WAIT = STOP_SECONDS
    manager = honcho.manager.Manager(Printer(sys.stdout))
    manager._procmgr = MainProcessOnly()
    for process in processes:
        manager.add_process(
            process.name, process.cmd, quiet=process.quiet, env=process.env, cwd=os.getcwd()
        )
    manager.loop()
    asked_to_stop = {128 + signal.SIGINT, 128 + signal.SIGTERM}
    return 0 if manager.returncode in asked_to_stop else 1


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
