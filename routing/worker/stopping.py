"""Whether this worker was told to stop, known from the signal on.

Celery notes it late: after the soft shutdown, when it is told to stop cold, and for some ways to
stop not before its loop comes round, which under gevent or in the solo pool takes as long as a
task. What ends meanwhile has been ended by the deploy, and may be followed by SIGKILL at any
moment.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from typing import Any

from billiard.common import EX_SOFTWARE, human_status
from celery import signals
from celery.bootsteps import RUN
from celery.worker import state

from routing import upstream

#: What a deploy, a supervisor or a terminal sends.
_ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

#: A process that a signal asked to end dies by it; or, when it was cleaning up, with billiard's
#: code for that; or it exits by the number of SIGTERM, before billiard's second one has reached it.
_ASKED_TO_END = re.compile(
    "|".join(
        re.escape(human_status(code)) + r"(?!\d)"
        for code in (*(-number for number in _ASKING), EX_SOFTWARE, signal.SIGTERM)
    )
)

#: What the handlers of tasks, and shells, make of the same signals.
_EXIT_CODES = frozenset(128 + number for number in _ASKING)


class Stop:
    """The word to stop, for one worker of this process at a time."""

    def __init__(self) -> None:
        self._told = False
        #: It lets what runs go on for a while, before it cuts it.
        self.waits_softly = False
        self._leave: Callable[[], None] | None = None
        signals.worker_shutting_down.connect(self._on_signal)

    @property
    def told(self) -> bool:
        """Whether the worker was told to stop."""
        # An exit status of 0 is a reason to stop, as in celery.worker.state.maybe_shutdown.
        stop, terminate = state.should_stop, state.should_terminate
        return (
            self._told
            or not (stop is None or stop is False)
            or not (terminate is None or terminate is False)
        )

    def watch(self, controller: Any, leave: Callable[[], None]) -> None:
        """Begin anew, for a worker that starts.

        Arguments:
            controller: the worker.
            leave: called when it is told to stop, maybe several times, in a signal handler: it
                must take no lock.
        """
        self._told, self._leave = False, leave
        wait_softly = controller.wait_for_soft_shutdown

        def wait_for_soft_shutdown() -> None:
            # A cold shutdown says so to everybody else only after this.
            self.note()
            self.waits_softly = True
            try:
                wait_softly()
            finally:
                self.waits_softly = False

        controller.wait_for_soft_shutdown = wait_for_soft_shutdown

    def note(self) -> None:
        """Note that the worker was told to stop; safe in a signal handler."""
        self._told = True
        if self._leave is not None:
            self._leave()

    def _on_signal(self, **_: Any) -> None:
        self.note()


STOP = Stop()


class Cut:
    """Lets a cold shutdown of pool processes cut them when the loop has ended, not where it was.

    Celery cancels what runs and waits for the pool in the handler of the signal. That may have come
    in the middle of reading that a task has started, or of handing one over: then nobody knows of
    it, and the shutdown waits until it ends by itself. A worker whose loop has ended already, as it
    stops warmly, is cut in the handler.

    Arguments:
        consumer: the worker's consumer, with its pool.
        finish: completes what is half way between the worker and its pool processes.
    """

    def __init__(self, consumer: Any, finish: Callable[[], None]) -> None:
        self._consumer = consumer
        self._finish = finish
        #: A handler has asked for it, and the loop is about to end.
        self._is_owed = False
        self._is_looping = False
        self._is_stopping = False
        self._loop = consumer.loop
        consumer.loop = self.loop
        self._cancel = consumer.cancel_active_requests
        self._stop = consumer.pool.stop
        self._terminate = consumer.controller.terminate
        consumer.cancel_active_requests = self.cancel
        consumer.pool.stop = self.stop
        consumer.controller.terminate = self.terminate

    @property
    def _waits_for_loop(self) -> bool:
        # Only a loop ends by `WorkerTerminate`, which leads to `terminate`; what connects may take
        # long.
        runs = self._is_looping and self._consumer.blueprint.state == RUN
        return bool(runs and not STOP.waits_softly)

    def loop(self, *args: Any, **kwargs: Any) -> Any:
        """Run the consumer's loop, until its connection is lost or the worker ends."""
        self._is_looping = True
        try:
            return self._loop(*args, **kwargs)
        finally:
            self._is_looping = False

    def cancel(self) -> None:
        """Cancel what runs, as soon as the loop has ended."""
        if not self._waits_for_loop:
            self._cancel()
            return
        self._is_owed = True
        if (waker := upstream.WAKER.find(self._consumer.hub)) is not None:
            waker.wake()  # a handler does not end the loop's poll

    def stop(self) -> None:
        """Wait for the pool; what a handler has asked for comes first, when the loop has ended."""
        if self._is_owed and self._waits_for_loop:
            return
        if not self._is_stopping:  # else a handler interrupts what is being completed
            self._is_stopping = True
            self._finish()
        if self._is_owed:
            self._is_owed = False
            self._cancel()
        self._stop()

    def terminate(self, *args: Any, **kwargs: Any) -> Any:
        """End the worker, after what is owed, whatever that raises."""
        try:
            if self._is_owed:
                self.stop()
        finally:
            ended = self._terminate(*args, **kwargs)
        return ended


def asked_to_end(error: BaseException) -> bool:
    """Return whether a pool process that was lost had been asked to end, by a signal.

    >>> from billiard.exceptions import WorkerLostError
    >>> asked_to_end(WorkerLostError("Worker exited prematurely: signal 15 (SIGTERM) Job: 3."))
    True
    >>> asked_to_end(WorkerLostError("Worker exited prematurely: signal 9 (SIGKILL) Job: 3."))
    False
    """
    if isinstance(error, SystemExit):
        return error.code in _EXIT_CODES
    return _ASKED_TO_END.search(str(error)) is not None


def is_cut_off() -> bool:
    """Return whether the worker stops cold: what it is doing is given up."""
    reason = state.should_terminate
    return reason is not None and reason is not False
