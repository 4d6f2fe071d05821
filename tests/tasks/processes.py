"""Processes of the platform that a test starts and sees to the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import psutil  # type: ignore[import-untyped]

ROOT = Path(__file__).parents[2]

STOP_SECONDS = 60


class Process:
    """``python -m …`` in the project's folder, with its output in a file; ends with the block."""

    def __init__(
        self, arguments: Sequence[str], *, environment: Mapping[str, str], log: Path
    ) -> None:
        self._arguments = [sys.executable, "-m", *arguments]
        self._environment = dict(environment)
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._seen: set[psutil.Process] = set()

    def __enter__(self) -> Self:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._arguments,
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
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
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        assert self._process is not None
        return self._process.poll() is None

    @property
    def output(self) -> str:
        """What it and its children have printed so far."""
        return self._log.read_text(errors="replace")

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
        assert self._process is not None
        os.kill(self.pid, how)
        return self.wait()

    def wait(self, seconds: float = STOP_SECONDS) -> int:
        """Return its exit code once it has ended."""
        assert self._process is not None
        return self._process.wait(seconds)
