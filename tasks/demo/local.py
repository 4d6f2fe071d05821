"""The processes that the demo needs: those that run are used, those that do not are started.

What was started here is started again when it ends by itself and nobody takes its place, and is
stopped at the end: workers first, so that they can give back what they hold, then the broker.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from tasks import broker
from tasks.settings import Settings

logger = logging.getLogger(__name__)

#: Workers that still run tasks at the end get this long to finish them. That takes less than a
#: second, but while the broker is away what has ended cannot be stored, and they wait.
STOP_SECONDS = 20.0

#: Somebody who restarts a process by hand comes first.
REPLACE_AFTER_SECONDS = 5.0


class LocalPlatformError(Exception):
    """A process of the platform did not start; the message says which and where its log is."""


class Child:
    """One process of ours, in a group of its own: Ctrl-C reaches it only through us."""

    def __init__(self, name: str, arguments: list[str], *, log: Path) -> None:
        self.name = name
        self.arguments = arguments
        self.log = log
        self.ended_at: float | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; its output goes to its log."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        self.ended_at = None

    def running(self) -> bool:
        """Whether it runs; the first time that it does not is kept in ``ended_at``."""
        if self._process is None or self._process.poll() is not None:
            self.ended_at = self.ended_at or time.monotonic()
            return False
        return True

    def ask_to_stop(self) -> None:
        """Ask it to end; `stop` waits for that."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def stop(self, *, seconds: float = STOP_SECONDS) -> None:
        """Ask it to end and wait for so long, in the end without asking."""
        if self._process is None:
            return
        self.ask_to_stop()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process = None


class LocalPlatform:
    """A broker and workers for the time of a ``with`` block."""

    def __init__(
        self, settings: Settings, *, workers: int, count_workers: Callable[[int], int]
    ) -> None:
        self.settings = settings
        self._wanted_workers = workers
        self._count_workers = count_workers
        self._broker: Child | None = None
        self._workers: list[Child] = []

    def __enter__(self) -> Self:
        try:
            self._ensure_broker()
            self._ensure_workers()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop what was started here; the broker last: workers give back to it what they hold."""
        deadline = time.monotonic() + STOP_SECONDS
        for worker in self._workers:
            worker.ask_to_stop()
        for worker in self._workers:
            worker.stop(seconds=max(0.0, deadline - time.monotonic()))
        self._workers.clear()
        if self._broker is not None:
            self._broker.stop()
            self._broker = None

    def replace_ended(self) -> None:
        """Start again what ended by itself some seconds ago, unless somebody else did."""
        for child in self._children():
            if child.running():
                continue
            ended_at = child.ended_at or 0.0
            if time.monotonic() - ended_at < REPLACE_AFTER_SECONDS:
                continue
            if child is self._broker and broker.answers(self.settings):
                continue
            logger.warning("%s has ended, starting it again; its log: %s", child.name, child.log)
            child.start()

    def _children(self) -> list[Child]:
        return [child for child in (self._broker, *self._workers) if child is not None]

    def _ensure_broker(self) -> None:
        if broker.answers(self.settings):
            return
        if self.settings.broker_url:
            raise LocalPlatformError(
                f"no broker answers at {broker.public(self.settings.broker_url)}; start it, or "
                "unset CELERIAC_BROKER_URL to use the embedded one"
            )
        self._broker = Child("broker", ["-m", "tasks.broker"], log=self._log("broker"))
        self._broker.start()
        self._wait_for(self._broker, lambda: broker.answers(self.settings))

    def _ensure_workers(self) -> None:
        if self._count_workers(1):
            return
        for number in range(1, self._wanted_workers + 1):
            name = f"demo{number}"
            options = ["-n", f"{name}@%h", "-c", "2", "--loglevel", "WARNING"]
            arguments = ["-m", "celery", "-A", "tasks", "worker", *options]
            worker = Child(f"worker {name}", arguments, log=self._log(name))
            worker.start()
            self._workers.append(worker)
        wanted = self._wanted_workers
        for worker in self._workers:
            self._wait_for(worker, lambda: self._count_workers(wanted) >= wanted)

    def _wait_for(self, child: Child, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + broker.START_SECONDS
        while not ready():
            if not child.running() or time.monotonic() > deadline:
                raise LocalPlatformError(f"{child.name} did not start; see {child.log}")
            time.sleep(broker.POLL_SECONDS)

    def _log(self, name: str) -> Path:
        return self.settings.data_dir / "logs" / f"{name}.log"
