"""A real Celery worker in a process of its own."""

from __future__ import annotations

import copy
import fcntl
import os
import secrets
import signal
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from tasks.child import Child
from tests.support.nursery import NURSERIES, Forked
from tests.support.wait import eventually

ROOT = Path(__file__).parent.parent.parent

#: Seconds in which a worker must be ready: imports on a busy machine.
START_SECONDS = 60


class Worker:
    """``python -m celery -A app_module worker`` as a context manager; ends with SIGTERM.

    It comes from the nursery, which saves its imports, where that makes no difference.

    Arguments:
        app_module: the module of the app, such as "tests.apps.plain".
        pool: prefork, threads, solo or gevent.
        concurrency: the number of slots.
        queues: names of the queues to consume; None for all of the app's table.
        env: environment variables on top of this process's own.
        options: further command line options.
        name: the node name, "@test" is added when it has no host; made up when empty.
    """

    def __init__(
        self,
        app_module: str,
        pool: str = "prefork",
        concurrency: int = 2,
        *,
        queues: Sequence[str] | None = None,
        env: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
        name: str = "",
        log_level: str = "INFO",
        start_seconds: float = START_SECONDS,
    ) -> None:
        self.pool = pool
        self.slots = 1 if pool == "solo" else concurrency
        name = name or secrets.token_hex(4)
        self.name = name if "@" in name else f"{name}@test"
        self.start_seconds = start_seconds
        self._env = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
        self._command = [sys.executable, "-m", "celery", "-A", app_module, "worker"]
        self._command += ["--pool", pool, "--concurrency", str(concurrency)]
        self._command += ["--hostname", self.name, "--loglevel", log_level]
        self._command += ["--without-mingle", "--without-gossip"]
        if queues is not None:
            self._command += ["--queues", ",".join(queues)]
        self._command += options
        self._process: Child | Forked | None = None
        self._log_path = Path(tempfile.mkdtemp(prefix="worker-")) / "log"
        self._read_from = 0

    def twin(
        self, *, queues: Sequence[str] | None = None, concurrency: int | None = None
    ) -> Worker:
        """Return another worker like this one, not started yet."""
        twin = copy.copy(self)
        twin.name = f"{secrets.token_hex(4)}@test"
        twin._command = [twin.name if part == self.name else part for part in self._command]
        if queues is not None:
            twin._command += ["--queues", ",".join(queues)]
        if concurrency is not None:
            twin.slots = concurrency
            twin._command += ["--concurrency", str(concurrency)]
        twin._process = None
        twin._log_path = Path(tempfile.mkdtemp(prefix="worker-")) / "log"
        twin._read_from = 0
        return twin

    # -- life ---------------------------------------------------------

    def __enter__(self) -> Worker:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        if exc_info[0] is not None:
            print(f"--- log of {self.name} ---\n{self.log[-20_000:]}")
            self.kill()  # what it runs may wait for the rest of the test
        self.terminate()

    def start(self) -> None:
        """Start it and wait until it is ready; starting twice is safe."""
        if self._process is not None:
            return
        self.launch()
        self.wait_log(f"{self.name} ready.", self.start_seconds)

    def launch(self) -> None:
        """Start it without waiting."""
        self._read_from = len(self._bytes())
        for nursery in NURSERIES:
            if nursery.can_start(self._command, self._env):
                self._process = nursery.start(self._command, env=self._env, log=self._log_path)
                return
        child = Child(self._command, log=self._log_path, cwd=ROOT, env=self._env)
        self._process = child.start()

    @property
    def pid(self) -> int:
        """The process id of the worker's parent process."""
        assert self._process is not None, "the worker is not running"
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.running

    @property
    def children(self) -> list[int]:
        """The process ids of its pool processes."""
        return [child.pid for child in psutil.Process(self.pid).children(recursive=True)]

    def send(self, how: signal.Signals) -> None:
        """Send a signal to the parent process."""
        assert self._process is not None, "the worker is not running"
        self._process.send(how)

    def terminate(self, timeout: float = 30) -> int | None:
        """Stop it warmly, and the hard way after the timeout; returns the exit code.

        Raises:
            AssertionError: the worker did not stop by itself.
        """
        if self._process is None:
            return None
        if self.running:
            self.send(signal.SIGTERM)
        return self.wait(timeout)

    def wait(self, timeout: float = 30) -> int:
        """Wait for its end; returns the exit code."""
        assert self._process is not None, "the worker is not running"
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            log = self.log[-20_000:]
            self.kill()
            raise AssertionError(f"{self.name} did not stop within {timeout} s:\n{log}") from None
        self._process = None
        return code

    def kill(self) -> None:
        """End it and its pool processes at once; killing twice is safe."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()

    # -- log ---------------------------------------------------------

    @property
    def log(self) -> str:
        """What it has written since its last start."""
        return self._bytes()[self._read_from :].decode(errors="replace")

    def forget_log(self) -> None:
        """Leave out of `log` what has been written so far."""
        self._read_from = len(self._bytes())

    def _bytes(self) -> bytes:
        return self._log_path.read_bytes() if self._log_path.exists() else b""

    def wait_log(self, text: str, timeout: float = 10) -> str:
        """Wait until the log holds a text; returns the log.

        Raises:
            AssertionError: it did not come, or the worker ended first.
        """

        def found() -> str:
            ended = not self.running
            log = self.log
            if text in log:
                return log
            if ended:
                raise AssertionError(
                    f"{self.name} ended before it logged {text!r}:\n{log[-20_000:]}"
                )
            return ""

        return eventually(found, timeout, message=lambda: f"{text!r} in:\n{self.log[-20_000:]}")


def unread(pid: int) -> int:
    """Return how many bytes lie in the pipes of a process, unread."""
    found = 0
    for path in Path(f"/proc/{pid}/fd").iterdir():
        if path.readlink().name.startswith("pipe:"):
            end = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            try:
                (size,) = struct.unpack("i", fcntl.ioctl(end, termios.FIONREAD, bytes(4)))
            finally:
                os.close(end)
            found += size
    return found
