"""Requests that say how their message ended.

Celery acknowledges without a reason; the ledger needs one for every message. The name is set on the
message just before Celery's own code acknowledges or rejects it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from billiard.exceptions import Terminated, TimeLimitExceeded
from celery import states
from celery.exceptions import Ignore, Reject, Retry
from celery.worker.state import revoked, task_ready

from routing.errors import DeadLetter, TooManyDeliveries
from routing.inflight.held import State
from routing.message.evidence import Reason, of_error, unwrap
from routing.message.expiry import by_server
from routing.message.validation import check_message
from routing.transport.message import EngineMessage
from routing.worker.clerk import CLERK
from routing.worker.failure import forget_frames
from routing.worker.followers import count_success
from routing.worker.interruption import EXITS, InterruptibleRequest, exit_text, holdings_of, mark
from routing.worker.outage import CutOff
from routing.worker.stopping import is_cut_off
from routing.worker.traced import ESCAPED
from routing.worker.waits import WAITS

logger = logging.getLogger(__name__)


class Request(InterruptibleRequest):
    """A task request of the engine; with other transports it behaves as Celery's."""

    #: While its result is being stored: what becomes of the message when it is.
    _then: list[Callable[[], None]] | None = None
    #: What runs it, from the hand-over on; None with other transports.
    pool: Any = None
    _expires: Any

    def __init__(self, message: Any, *args: Any, **kwargs: Any) -> None:
        if isinstance(message, EngineMessage):
            _check(message, **kwargs)
        super().__init__(message, *args, **kwargs)
        if self._expires is not None and isinstance(message, EngineMessage):
            self._expire_by_server(message)
        if getattr(message, "was_kept", False):
            self._eta = None  # the task still sees it in its own request

    def _expire_by_server(self, message: EngineMessage) -> None:
        """Let it expire when its producer meant it to, whatever the clock there showed.

        The task sees that time, and so does its retry.
        """
        expires = by_server(
            self._expires,
            eta=self._eta,
            retries=self.request_dict.get("retries"),
            properties=message.properties,
            noted=message.noted,
        )
        if expires is not self._expires:
            self._expires = expires
            self.request_dict["expires"] = expires.isoformat()

    def maybe_expire(self) -> bool:
        """Tell whether it has expired, by the server's clock where that is known."""
        holdings = holdings_of(self.message)
        now_ms = holdings.clock.now_ms() if holdings is not None else 0.0
        if not self.expires or not now_ms:
            return bool(super().maybe_expire())
        if now_ms <= self.expires.timestamp() * 1000:
            return False
        revoked.add(self.id)
        return True

    def note_death(self, error: BaseException, *, traceback: str = "") -> None:
        """Note why the message is a dead letter if it ends by this error, early acks apart."""
        if self.acknowledged or isinstance(error, (Ignore, Retry)):
            return
        self.message.evidence = of_error(
            _reason(error),
            error,
            traceback=traceback,
            task=self.type,
            task_id=self.id,
            attempts=(self.request_dict.get("retries") or 0) + 1,
            worker=self.hostname,
        )

    def is_void(self) -> bool:
        """Whether it must not run: another worker has it; or it is too old, or killed its worker
        too often, and is ended now."""
        if (holdings := holdings_of(self.message)) is None:
            return False
        if (held := holdings.get(self.message.delivery_tag)) is None:
            task_ready(self)
            return True
        limits = holdings.topology.queue(held.queue)
        if held.delivery_count.count >= limits.max_deliveries:
            error = TooManyDeliveries(held.delivery_count.count, held.delivery_count.evidence)
            logger.error("%s is not run again: %s", self, error, extra={"event": "poison"})
            self.fail_early(error)
            return True
        if not held.at_ms or limits.max_age is None:
            return False
        if holdings.clock.now_ms() - held.at_ms <= limits.max_age * 1000:
            return False
        logger.info("%s has waited for longer than max_age", self, extra={"event": "too_old"})
        self._announce_revoked("expired", False, None, True)
        return True

    def fail_early(self, error: Exception) -> None:
        """End it as failed without running it."""
        task_ready(self)
        self.message.ending = "failed"
        self.note_death(error)
        self._end_when_stored(partial(self._fail_early, error))

    def _fail_early(self, error: Exception) -> None:
        try:
            self.task.backend.mark_as_failure(
                self.id, error, request=self._context, store_result=self.store_errors
            )
        except Exception as problem:
            if isinstance(problem, CutOff):
                raise
            # Its own arguments cannot be stored with it. It must not come back all the same, again
            # and again; its dead letter says what became of it.
            logger.exception("the failure of %s cannot be stored", self)
        self.reject(requeue=False)

    def _end_when_stored(self, end: Callable[[], None]) -> None:
        """Make an ending outside of the event loop; the message goes when its result is stored."""
        self._is_ending = True
        CLERK.do(self.app, partial(self._end_stored, end))

    def _end_stored(self, end: Callable[[], None]) -> None:
        self._then = []
        try:
            with self._ending_surely():
                end()
        finally:
            then, self._then = self._then, None
        for step in then:
            step()

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """Note that the task runs; a task that acknowledges early is settled before it goes on."""
        mark([self], State.STARTED)
        tell_repeated_starts([self])
        WAITS.note_starts([self], time_accepted)
        if not self.task.acks_late and isinstance(self.message, EngineMessage):
            self.message.ending = "started"
            self.message.ends_at_start = True
        super().on_accepted(pid, time_accepted)
        if is_cut_off() and self.pool is not None:
            # The cold shutdown has cancelled what it knew to run, and waits for the pool now.
            self.cancel(self.pool, emit_retry=not self.task.acks_late)

    def acknowledge(self) -> None:
        """Acknowledge; an early one is settled before the task goes on.

        Not when the task was cancelled: gevent's pool reports that as a success.
        """
        if self._already_cancelled:
            self._requeue_cancelled()
            return
        if self._then is not None:
            self._then.append(self.acknowledge)
            return
        if getattr(self.message, "ends_at_start", False) and not self.acknowledged:
            self.message.ack_log_error(logger, self.connection_errors)
            self.acknowledged = True
            return
        super().acknowledge()

    def reject(self, requeue: bool = False) -> None:
        """Return the message to its queue, or end it as a dead letter."""
        if self._then is not None:
            self._then.append(partial(self.reject, requeue))
            return
        super().reject(requeue=requeue)

    def on_retry(self, exc_info: Any) -> None:
        """End the message as retried: the retry is a message of its own."""
        self.message.ending = "retried"
        super().on_retry(exc_info)

    def on_success(self, failed__retval__runtime: Any, **kwargs: Any) -> None:
        """End the message by the answer of its run in the pool, also when it was cancelled.

        A part of a chord that may be uncounted is counted again.
        """
        failed, result, seconds = failed__retval__runtime
        if seconds is not None:  # else its greenlet was killed, and it has not ended
            self._already_cancelled = False
        if failed == ESCAPED:
            self.on_failure(result)
            return
        end = partial(super().on_success, failed__retval__runtime, **kwargs)
        if not failed and self.may_be_repeated():
            self._end_when_stored(partial(self._end_repeated, end))
            return
        with self._ending_surely():
            end()

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """End the message as failed after a hard time limit, unless it is to run again."""
        if not soft:
            self.message.ending = "failed"
            self.note_death(TimeLimitExceeded(timeout))
            self.message.loss = f"it ran for {timeout:g} s, its hard limit, on {self.hostname}"
            end = partial(super().on_timeout, soft, timeout)
            self._end_when_stored(partial(self._end_unless_cut_off, end))
            return
        super().on_timeout(soft, timeout)

    def may_be_repeated(self) -> bool:
        """Whether it may have succeeded before, and been skipped now, as a part of a chord."""
        return bool(
            self.delivery_info.get("redelivered")
            and self._context.chord
            and self.app.conf.worker_deduplicate_successful_tasks
        )

    def _end_repeated(self, end: Callable[[], None]) -> None:
        meta = self.task.backend.get_task_meta(self.id, cache=False)
        if meta["status"] == states.SUCCESS:
            count_success(self.task, self._context, meta.get("result"))
        end()

    def on_failure(
        self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False
    ) -> None:
        """End the message by what was raised, unless Celery finds that it is to run again."""
        error = unwrap(exc_info)
        if self._already_revoked and isinstance(error, (*EXITS, Terminated)):
            return  # who revoked it has killed its process, by whatever signal; it has ended
        self.message.ending = _ending_by(error)
        self.note_death(error, traceback=str(exc_info.traceback or ""))
        end = partial(super().on_failure, exc_info, send_failed_event, return_ok)
        if isinstance(error, EXITS):
            if self._was_interrupted(error):
                self._end_when_stored(partial(self._end_interrupted, error, end))
                return
            self.message.loss = f"its process was lost on {self.hostname}: {exit_text(error)}"
        if not return_ok or isinstance(error, Reject):
            end_failed = partial(self._end_failed, end)
            if isinstance(error, TimeLimitExceeded):
                end_failed = partial(self._end_unless_cut_off, end_failed)
            self._end_when_stored(end_failed)
            return
        with self._ending_surely():  # its result was stored where it ran
            self._end_failed(end)

    def _end_unless_cut_off(self, end: Callable[[], None]) -> None:
        """End it; not where Celery would do so without a result: then the message is requeued."""
        if not is_cut_off() or self.acknowledged:
            end()

    def _end_failed(self, end: Callable[[], None]) -> None:
        end()
        if self._already_cancelled:
            self._requeue_cancelled()

    @contextmanager
    def _ending_surely(self) -> Iterator[None]:
        """End the message also when a hook, or the storing of its ending, raises on the way."""
        try:
            yield
        except BaseException as error:
            if isinstance(error, CutOff):
                raise  # the worker is cut off from its results as it ends: the message is requeued
            if not isinstance(error, Exception) and not CLERK.is_here:
                raise  # it ends the worker
            logger.exception(
                "%s has ended, but not all could be done that follows",
                self,
                extra={"event": "ending_raised"},
            )
            forget_frames(error)
            if not self.acknowledged:
                self.reject(requeue=False)

    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> None:
        self.message.ending = "expired" if expired else "revoked"
        # From now on, although that is yet to be stored.
        self._already_revoked = True
        announce = partial(super()._announce_revoked, reason, terminated, signum, expired)
        self._end_when_stored(partial(self._announce, announce, reason))

    def _announce(self, announce: Callable[[], None], reason: str) -> None:
        try:
            announce()
        except Exception as error:
            if isinstance(error, CutOff):
                raise
            logger.exception("%s was %s, but that could not be stored", self, reason)
            self.acknowledge()


def tell_repeated_starts(requests: Sequence[Request]) -> None:
    """Tell the broker now which of these that begin to run were delivered before.

    Such a message may have ended its last worker at once; it must be charged before it can again.
    """
    repeated = [
        request.message
        for request in requests
        if request.delivery_info.get("redelivered") and isinstance(request.message, EngineMessage)
    ]
    if repeated:
        repeated[0].link.tell_starts([message.delivery_tag for message in repeated])


def _check(
    message: EngineMessage,
    *,
    headers: Any = None,
    body: Any = None,
    decoded: bool = False,
    **_: Any,
) -> None:
    content = body if decoded else message.payload
    check_message(
        message.headers if headers is None else headers, content, message.content_encoding
    )


def _reason(error: BaseException) -> Reason:
    if isinstance(error, Reject):
        return "rejected"
    if isinstance(error, TooManyDeliveries):
        return "poison"
    return "dead" if isinstance(error, DeadLetter) else "failed"


def _ending_by(exception: BaseException) -> str:
    if isinstance(exception, Reject):
        return "rejected"
    return "ignored" if isinstance(exception, Ignore) else "failed"
