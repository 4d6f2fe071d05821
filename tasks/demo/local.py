"""The processes that the demo needs: those that run are used, those that do not are started.

What was started here is started again when it ends by itself and nobody takes its place, and is
stopped at the end: workers first, so that they can requeue what they hold, then the broker.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from tasks import broker
from tasks.child import Child
from tasks.settings import Settings

logger = logging.getLogger(__name__)

#: Workers that still run tasks at the end get this long to finish them. That takes less than a
#: second, but while the broker is away what has ended cannot be stored, and they wait.
STOP_SECONDS = 20.0

#: Somebody who restarts a process by hand comes first.
REPLACE_AFTER_SECONDS = 5.0


class LocalPlatformError(Exception):
    """A process of the platform did not start; the message says which and where its log is."""


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
        self._ended_at: dict[Child, float] = {}

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
        """Stop what was started here; the broker last: workers requeue what they hold."""
        deadline = time.monotonic() + STOP_SECONDS
        for worker in self._workers:
            worker.send()
        for worker in self._workers:
            worker.stop(deadline - time.monotonic())
        self._workers.clear()
        if self._broker is not None:
            self._broker.stop(STOP_SECONDS)
            self._broker = None

    def replace_ended(self) -> None:
        """Start again what ended by itself some seconds ago, unless somebody else did."""
        for child in self._children():
            if child.running:
                self._ended_at.pop(child, None)
                continue
            ended_at = self._ended_at.setdefault(child, time.monotonic())
            if time.monotonic() - ended_at < REPLACE_AFTER_SECONDS:
                continue
            if child is self._broker and broker.answers(self.settings):
                continue
            what = child.log.stem
            logger.warning("%s has ended, starting it again; its log: %s", what, child.log)
            child.start()
            self._ended_at.pop(child, None)

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
        self._broker = self._started("broker", "tasks.broker")
        self._wait_for(self._broker, lambda: broker.answers(self.settings))

    def _ensure_workers(self) -> None:
        if self._count_workers(1):
            return
        for number in range(1, self._wanted_workers + 1):
            name = f"demo{number}"
            options = ["-n", f"{name}@%h", "-c", "2", "--loglevel", "WARNING"]
            self._workers.append(self._started(name, "celery", "-A", "tasks", "worker", *options))
        wanted = self._wanted_workers
        for worker in self._workers:
            self._wait_for(worker, lambda: self._count_workers(wanted) >= wanted)

    def _started(self, name: str, *module: str) -> Child:
        log = self.settings.data_dir / "logs" / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        return Child([sys.executable, "-m", *module], log=log).start()

    def _wait_for(self, child: Child, ready: Callable[[], bool]) -> None:
        if not child.wait_ready(ready, broker.START_SECONDS):
            raise LocalPlatformError(f"{child.log.stem} did not start; see {child.log}")
