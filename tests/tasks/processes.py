"""Processes of the platform that a test starts and sees to the end."""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import psutil  # type: ignore[import-untyped]

from tasks.child import Child

ROOT = Path(__file__).parents[2]

STOP_SECONDS = 60


class Process:
    """``python -m …`` in the project's folder, with its output in a file; ends with the block."""

    def __init__(
        self, arguments: Sequence[str], *, environment: Mapping[str, str], log: Path
    ) -> None:
        command = [sys.executable, "-m", *arguments]
        self._child = Child(command, log=log, cwd=ROOT, env=environment)
        self._seen: set[psutil.Process] = set()

    def __enter__(self) -> Self:
        self._child.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if exc_info[0] is not None:
            print(self.output[-20_000:])
        left = self.family()
        if self.running:
            self.stop()
        for process in left:
            if process.is_running():
                process.kill()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._child.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._child.running

    @property
    def output(self) -> str:
        """What it and its children have printed so far."""
        return self._child.log.read_text(errors="replace")

    def family(self) -> list[psutil.Process]:
        """Every process that it has started and that was seen by a call of this method."""
        if self.running:
            try:
                self._seen.update(psutil.Process(self.pid).children(recursive=True))
            except psutil.NoSuchProcess:
                pass
        return [process for process in self._seen if process.is_running()]

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to end, as a terminal or a service manager does, and return its exit code."""
        self._child.send(how)
        return self.wait()

    def wait(self, seconds: float = STOP_SECONDS) -> int:
        """Return its exit code once it has ended."""
        return self._child.wait(seconds)
