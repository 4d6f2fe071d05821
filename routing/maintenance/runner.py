"""Runs what a worker does now and then for everybody.

A job is a small object with an interval. It has a thread (under gevent a greenlet) and a connection
of its own: one that waits for a result backend must not hold up the one that looks for leases. What
it raises is logged; a lost connection is opened again at the next round. Nothing that a worker's
own tasks depend on is done here: a job may come late.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from celery import bootsteps
from kombu.exceptions import OperationalError

from routing.inflight.forks import unforked
from routing.maintenance.ageing import AgeDeadLetters
from routing.maintenance.dropped import FinishDropped
from routing.maintenance.presence import Presence
from routing.maintenance.reclaim import Reclaim
from routing.redis.faults import ANY_FAULT, LOST
from routing.transport.channel import EngineMixin

logger = logging.getLogger(__name__)


#: Seconds that a worker which stops gives to jobs; what they hold then is others' after a lease.
LAST_SECONDS = 2.0


class Job(Protocol):
    """Something to be done now and then."""

    #: Seconds from one run to the next.
    interval_seconds: float

    def run(self, channel: EngineMixin) -> None:
        """Do it, with a channel that no other thread uses."""


@runtime_checkable
class Leaving(Protocol):
    """A job that speaks of its worker: from its start on, and when it stops."""

    def leave(self) -> None:
        """Say it; in the thread that stops the worker."""


#: What a worker does now and then for everybody: each is made from its consumer.
JOBS: tuple[Callable[[Any], Job], ...] = (AgeDeadLetters, FinishDropped, Reclaim, Presence)


class Upkeep(bootsteps.StartStopStep):
    """The consumer bootstep that runs the jobs while the worker is connected."""

    requires = ("routing.worker.dispatcher:Dispatcher",)

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        self._runners: list[_Runner] = []
        super().__init__(parent, **kwargs)

    def start(self, parent: Any) -> None:
        """Begin, on a broker of the engine; called again after each reconnect."""
        if isinstance(parent.task_consumer.channel, EngineMixin):
            self._runners = [_Runner(parent.app, make(parent)) for make in JOBS]

    def stop(self, parent: Any) -> None:
        """End soon; stopping twice is safe."""
        for runner in self._runners:
            runner.stop()

    terminate = stop

    def shutdown(self, parent: Any) -> None:
        """Let what is in the middle of something settle it, for a moment at most."""
        self.stop(parent)
        until = time.monotonic() + LAST_SECONDS
        for runner in self._runners:
            runner.join(max(0.0, until - time.monotonic()))


class _Runner:
    def __init__(self, app: Any, job: Job) -> None:
        self._app = app
        self._job = job
        # What speaks of this worker does so at once; what is done for everybody has time.
        self._due = time.monotonic() + (0 if isinstance(job, Leaving) else job.interval_seconds)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="celeriac-upkeep", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if isinstance(self._job, Leaving):
            self._job.leave()

    def join(self, seconds: float) -> None:
        self._thread.join(seconds)

    def _run(self) -> None:
        while not self._wait_until_due():
            try:
                # The broker that the worker consumes from; others may be written to.
                with self._app.connection_for_read() as connection:
                    with unforked():
                        channel = connection.default_channel
                    self._work(channel)
            except (*LOST, OperationalError) as error:
                logger.debug("upkeep waits for the broker: %s", error)
            except Exception:
                logger.exception("upkeep cannot connect", extra={"event": "upkeep_failed"})
            self._stopping.wait(1)

    def _wait_until_due(self) -> bool:
        """Return whether to stop instead."""
        return self._stopping.wait(max(0.0, self._due - time.monotonic()))

    def _work(self, channel: EngineMixin) -> None:
        while not self._wait_until_due():
            self._due = time.monotonic() + self._job.interval_seconds
            self._run_once(channel)

    def _run_once(self, channel: EngineMixin) -> None:
        try:
            with unforked():
                self._job.run(channel)
        except LOST:
            raise
        except ANY_FAULT as error:
            logger.warning(
                "%s: the broker refused: %s",
                type(self._job).__name__,
                error,
                extra={"event": "upkeep_refused"},
            )
        except Exception:
            logger.exception(
                "%s failed", type(self._job).__name__, extra={"event": "upkeep_failed"}
            )
