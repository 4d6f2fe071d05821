"""Keeps the pipes of the prefork pool whole when the event loop is reset after a lost connection.

The loop drives a payload or an answer that is larger than a pipe (64 KB) with a generator, and
forgets it when it is reset. Stock Celery then finishes the payloads in ``pool.flush``, drops what
the pool has not accepted, as the broker redelivers it, and loses half-read answers. Handed-over
work is ours to keep, so both are finished here and nothing is dropped. The process at the other end
is idle, or in the middle of its answer, so this waits for no task.

An answer that cannot be unpickled here is replaced by a failure of the job that it belongs to. Our
own functions answer nothing of that kind; stock Celery's worker ends by it.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import GeneratorType
from typing import IO, TYPE_CHECKING, Any, NoReturn

from billiard.exceptions import RestartFreqExceeded
from billiard.pool import READY
from celery.concurrency import asynpool
from celery.concurrency.asynpool import AsynPool

from routing import upstream
from routing.errors import AnswerUnreadable
from routing.worker.failure import failure_of

if TYPE_CHECKING:
    Coroutine = GeneratorType[None, None, None]

logger = logging.getLogger(__name__)


#: A process that ends is looked at so often, for half a second: then it may have closed its files
#: and go on.
EXIT_LOOK_SECONDS = 0.005
EXIT_LOOKS = 100


class Pipes:
    """What is half way between the worker and its pool processes.

    Arguments:
        pool: the asynchronous pool inside Celery's prefork pool.
    """

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._answers: dict[int, Coroutine] = {}
        self._is_finishing = False
        handler = upstream.RESULT_HANDLER.of(pool)
        self._receive: Callable[..., Coroutine] = upstream.READ_ANSWER.of(handler)
        # The loop holds the only other reference to the reader of an answer.
        upstream.READ_ANSWER.put(handler, self._remember)
        self._watch_process = upstream.TRACK_PROCESS.of(pool)
        upstream.TRACK_PROCESS.put(pool, self._watch_if_alive)
        upstream.PROCESS_EXIT.put(pool, self._replace)
        # Of the class: it is called on that, too, when the pool is terminated.
        upstream.STOP_TASK_HANDLER.put(AsynPool, staticmethod(_tell_to_end))

    def _watch_if_alive(self, process: Any, hub: Any) -> None:
        """Watch a pool process for its end, unless that was noticed before the loop was reset.

        Stock Celery then watches None and the worker ends (as in celery/celery#9250). The pool puts
        a new process in its place by itself, within seconds.
        """
        if upstream.SENTINEL.find(process, True) is not None:
            self._watch_process(process, hub)

    def _replace(self, hub: Any, process: Any, looks: int = EXIT_LOOKS) -> None:
        """Put a new process in the place of one that ends.

        Its end is heard of when its files are closed, which is before it can be waited for: who
        looks only then finds it alive, and stock Celery looks again up to five seconds later.
        """
        pool = self._pool
        upstream.UNTRACK_PROCESS.of(pool)(process, hub)
        # One that never came up is left to the pool's own pace: the next may not, either.
        if process.exitcode is None and looks and process not in upstream.WAITING_TO_START.of(pool):
            hub.call_later(EXIT_LOOK_SECONDS, self._look_again, hub, process, looks - 1)
        else:
            pool.maintain_pool()

    def _look_again(self, hub: Any, process: Any, looks: int) -> None:
        try:
            self._replace(hub, process, looks)
        except RestartFreqExceeded as error:
            hub.call_soon(_raise, error)  # a timer would keep it; it ends the worker

    def _remember(self, add_reader: Any, fd: int, callback: Any) -> Coroutine:
        load = partial(self._load, fd)
        reader = self._answers[fd] = self._receive(add_reader, fd, callback, load=load)
        return reader

    def _load(self, fd: int, stream: IO[bytes]) -> Any:
        try:
            return pickle.load(stream)
        except Exception as error:
            return self._unreadable(fd, error)

    def _unreadable(self, fd: int, error: Exception) -> Any:
        """Return the failure of what the process at the other end runs, None if that is unknown."""
        process = upstream.RESULT_HANDLER.of(self._pool).fileno_to_outq.get(fd)
        logger.error("an answer of %r cannot be read", process, exc_info=error)
        for job in upstream.JOBS.of(self._pool).values():
            if process is not None and upstream.JOB_PID.of(job) == process.pid and not job.ready():
                answer = (False, failure_of(AnswerUnreadable(repr(error))))
                return READY, (upstream.JOB_NUMBER.of(job), None, answer, process.inqW_fd)
        return None

    def finish(self) -> None:
        """Complete every payload and every answer that is half way.

        A handler that interrupts it leaves that to it.
        """
        if self._is_finishing:
            return
        self._is_finishing = True
        try:
            self._finish_payloads()
            self._finish_answers()
        finally:
            self._is_finishing = False

    def _finish_payloads(self) -> None:
        pool = self._pool
        jobs = {_writer_of(job): job for job in upstream.JOBS.of(pool).values()}
        for writer in list(upstream.ACTIVE_WRITERS.of(pool)):
            job = jobs.get(writer)
            if job is not None and upstream.JOB_PROCESS.of(job) is not None:
                upstream.FLUSH_WRITER.of(pool)(upstream.JOB_PROCESS.of(job), writer)
            else:
                _exhaust(writer)
            upstream.ACTIVE_WRITERS.of(pool).discard(writer)

    def _finish_answers(self) -> None:
        handler = upstream.RESULT_HANDLER.of(self._pool)
        hub, answers, self._answers = upstream.ANSWERS_HUB.of(handler), self._answers, {}
        for fd, reader in answers.items():
            process = handler.fileno_to_outq.get(fd)
            if hub is None or process is None or reader.gi_frame is None:
                continue
            hub.add_reader(fd, reader)
            upstream.FINISH_ANSWER.of(handler)(fd, process)


def _tell_to_end(task_handler: Any) -> None:
    """Tell every pool process to end when it has done what it has.

    One that was killed while it read has left its pipe full, and nobody reads on: stock Celery
    waits for room in it for ever.
    """
    for process in task_handler.pool:
        while upstream.IS_ALIVE.of(process)() and not _is_told(process):
            continue


def _is_told(process: Any) -> bool:
    with suppress(OSError):  # its pipe is closed, as it ends
        _, writable, _ = upstream.SELECT.of(asynpool)(
            writers={upstream.PIPE_WRITER.of(process.inq)}, timeout=EXIT_LOOK_SECONDS
        )
        if not writable:
            return False
        process.inq.put(None)  # all of it: a pipe with room at all has room for this
    return True


def _raise(error: Exception) -> NoReturn:
    raise error


def _writer_of(job: Any) -> Coroutine | None:
    reference = upstream.JOB_WRITER.find(job)
    return reference() if reference is not None else None


def _exhaust(writer: Coroutine) -> None:
    try:
        for _ in writer:
            continue
    except (OSError, EOFError):
        return
