"""Slots of the worker's pool: when one is free, and who learns of it.

Units are counted on their way in and out, and a slot is free when nobody is counted in it. The
prefork pool has a semaphore besides, which billiard releases when a job ends, before it calls the
job's callback: there a slot is free when both say so.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, TypeAlias

from billiard.einfo import ExceptionInfo

from routing import upstream
from routing.worker.exits import exits_in
from routing.worker.failure import failure_of
from routing.worker.running import Leave
from routing.worker.traced import surely_ending

logger = logging.getLogger(__name__)

#: Called when a unit enters the pool; returns what to call when it has left.
OnEnter: TypeAlias = Callable[[], Leave]

#: What a pool calls with the answer to a call, or with the error that took its place.
Callback: TypeAlias = Callable[..., Any]


class Slots(Protocol):
    """The free slots of a pool."""

    def free(self) -> int:
        """Return how many units the pool can start now."""

    def acquire(self) -> None:
        """Take a free slot for a unit that is handed over next."""

    def await_next(self) -> None:
        """Learn when the next slot frees, as none is free now."""

    def release(self) -> None:
        """Return a slot that was taken and not used."""

    def reset(self) -> None:
        """Begin anew after Celery cleared its own count, with what still runs."""


class SemaphoreSlots:
    """Slots of the prefork pool.

    While no slot is free, one waiter stands in the semaphore: the slot that frees next is granted
    to it. The semaphore may be released before the unit that ended is counted out, or after it (its
    process was lost), and once too often (a process that was replaced); whichever comes last frees
    the slot.

    Arguments:
        pool: the pool; its way in is wrapped.
        semaphore: the pool's semaphore, shared with billiard.
        on_free: called when a slot has become free.
        on_enter: called for each unit that enters the pool; returns what to call when it has left.
    """

    def __init__(
        self, pool: Any, semaphore: Any, *, on_free: Callable[[], None], on_enter: OnEnter
    ) -> None:
        self._pool = pool
        self._semaphore = semaphore
        self._on_free = on_free
        self._on_enter = on_enter
        self._enter = pool.on_apply
        pool.on_apply = self._apply
        self._granted = 0
        self._waits = False
        self._inside = 0

    def _apply(
        self, target: Callable[..., Any], args: Any = None, *rest: Any, **kwargs: Any
    ) -> Any:
        target, args = surely_ending(target, args)
        left = self._count_in()
        for name in ("callback", "error_callback"):
            kwargs[name] = self._after(left, kwargs.get(name))
        try:
            result = self._enter(target, args, *rest, **kwargs)
        except Exception:  # such as a message that cannot be pickled
            left()
            raise
        if result is None:  # the pool is closing
            left()
        return result

    def _count_in(self) -> Leave:
        """Count a unit in; returns what counts it out, once or more."""
        pending = [self._on_enter()]
        self._inside += 1

        def leave(ran_seconds: float | None = None) -> None:
            if pending:
                left = pending.pop()
                self._inside -= 1
                left(ran_seconds)

        return leave

    def _after(self, left: Leave, callback: Callback | None) -> Callback:
        """Return a callback before which the unit is counted out and its slot given on."""

        def call(*args: Any, **kwargs: Any) -> Any:
            left(ran_for(args[0]) if args else None)
            self._on_free()
            return callback(*args, **kwargs) if callback is not None else None

        return call

    def free(self) -> int:
        """Return how many units the pool can start now."""
        free: int = self._granted + self._semaphore.value
        counted: int = self._semaphore.initial_value - self._inside
        return max(0, counted if counted < free else free)

    def acquire(self) -> None:
        """Take a free slot; after the last one, wait in the semaphore for the next."""
        if self._granted:
            self._granted -= 1
        else:
            self._semaphore.acquire(_nothing)
        self.await_next()

    def await_next(self) -> None:
        """Stand in the semaphore when it is empty, to learn when a slot frees."""
        if not self._waits and self._semaphore.value <= 0:
            self._waits = True
            self._semaphore.acquire(self._grant)

    def _grant(self) -> None:
        self._waits = False
        self._granted += 1
        if self.free():  # else the unit that ended is still counted, and frees the slot itself
            self._on_free()
        while self._granted:
            self._granted -= 1
            self._semaphore.release()

    def release(self) -> None:
        """Return a slot that was taken and not used."""
        self._semaphore.release()

    def reset(self) -> None:
        """Count what still runs: Celery has set the semaphore to its full size."""
        running = len(upstream.JOBS.of(upstream.PROCESS_POOL.of(self._pool)))
        self._granted = 0
        self._waits = False
        self._semaphore.value = max(0, self._semaphore.initial_value - running)


class CountedSlots:
    """Slots of the threads, gevent and solo pools.

    Arguments:
        pool: the pool; its way in is wrapped.
        on_free: called in the consumer's loop when a slot has become free.
        on_enter: called for each unit that enters the pool; returns what to call when it has left.
        soon: runs a callback in the consumer's loop, from any thread.
    """

    def __init__(
        self,
        pool: Any,
        *,
        on_free: Callable[[], None],
        on_enter: OnEnter,
        soon: Callable[[Callable[[], None]], None],
    ) -> None:
        self._pool = pool
        self._on_free = on_free
        self._on_enter = on_enter
        self._soon = soon
        self._busy = 0
        #: Slots that were taken by what is not in the pool yet.
        self._taken = 0
        #: The timer of some pools is a thread, which a signal may interrupt.
        self._lock = threading.RLock()
        self._enter = pool.on_apply
        self._inline: int | None = None
        pool.on_apply = self._apply

    def _apply(
        self, target: Callable[..., Any], args: Any = None, *rest: Any, **kwargs: Any
    ) -> Any:
        exits = exits_in(self._pool, kwargs.get("timeout"))
        target, args = surely_ending(target, args, exits)
        leave = self._count_in()

        def run(*target_args: Any, **target_kwargs: Any) -> Any:
            try:
                return target(*target_args, **target_kwargs)
            except BaseException as error:
                # It escaped Celery's tracer. These pools would forget it, and the message would be
                # held for ever; prefork reports it.
                if exits.has(error):
                    leave()
                    raise
                return failure_of(error)

        answered = _by_kind(kwargs.get("callback"), kwargs.get("error_callback"))
        kwargs["callback"] = _then(answered, leave)
        kwargs["accept_callback"] = _guarded(kwargs.get("accept_callback"))
        if (timed_out := kwargs.get("timeout_callback")) is not None:
            kwargs["timeout_callback"] = _then(timed_out, leave)
        outer, self._inline = self._inline, threading.get_ident()
        try:
            return self._enter(run, args, *rest, **kwargs)
        except Exception:
            leave()  # the pool did not take it
            raise
        finally:
            self._inline = outer

    def _count_in(self) -> Leave:
        """Count a unit in; returns what counts it out, once or more."""
        pending = [self._on_enter()]
        with self._lock:
            self._busy += 1
            self._taken = max(0, self._taken - 1)

        def leave(ran_seconds: float | None = None) -> None:
            if pending:
                self._leave(partial(pending.pop(), ran_seconds))

        return leave

    def _leave(self, left: Callable[[], None]) -> None:
        if self._inline == threading.get_ident() and not getattr(self._pool, "is_green", False):
            self._count_out()  # the solo pool: the unit ran inside the hand-over
            left()
        else:
            self._soon(partial(self._free_one, left))

    def _free_one(self, left: Callable[[], None]) -> None:
        self._count_out()
        left()
        self._on_free()

    def _count_out(self) -> None:
        with self._lock:
            self._busy -= 1

    def free(self) -> int:
        """Return how many units the pool can start now."""
        return max(0, int(self._pool.num_processes) - self._busy - self._taken)

    def acquire(self) -> None:
        """Take a free slot, until the unit enters the pool."""
        with self._lock:
            self._taken += 1

    def await_next(self) -> None:
        """Do nothing: every slot that frees says so."""

    def release(self) -> None:
        """Return a slot that was taken and not used."""
        with self._lock:
            self._taken = max(0, self._taken - 1)

    def reset(self) -> None:
        """Do nothing: what still runs is still counted."""


def ran_for(answer: Any) -> float | None:
    """Return for how many seconds a call ran, as its answer says; None where it does not.

    A task's answer is (failed, result, seconds), and has seconds where the task has succeeded; that
    of a batch has them beside.
    """
    match answer:
        case (int(), _, float() as seconds):
            return seconds
        case list():
            return getattr(answer, "ran_seconds", None)
        case _:
            return None


def _then(callback: Callback, leave: Leave) -> Callback:
    """Return a callback after which a unit is counted out: what is fetched for its slot carries
    the endings that the callback has noted."""

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return callback(*args, **kwargs)
        finally:
            leave(ran_for(args[0]) if args else None)

    return call


def _guarded(callback: Callback | None) -> Callback:
    """Return a callback whose errors are logged, so that the call goes on, as in prefork."""

    def call(*args: Any, **kwargs: Any) -> None:
        try:
            if callback is not None:
                callback(*args, **kwargs)
        except Exception:
            logger.exception("a start could not be reported", extra={"event": "start_unreported"})

    return call


def _by_kind(callback: Callback | None, error_callback: Callback | None) -> Callback:
    """Return what takes an answer or an error to the one that waits for it, as prefork does."""

    def call(answer: Any) -> Any:
        chosen = error_callback if isinstance(answer, ExceptionInfo) else callback
        return chosen(answer) if chosen is not None else None

    return call


def _nothing() -> None:
    return None
