"""How a worker waits for a result backend that does not take results.

What a task became is known once it has run, and is never found out again because it could not be
stored: it waits with its slot until the backend takes it, whether that was away or refused (full
memory, somebody's script). So a backend that takes nothing stops the fetching, by the prefetch, and
fills no memory. Only a cold shutdown ends the wait: then the message goes back.

`wait_for_results` gives the app's backends, in every thread, classes that do so; they also store
each state in one step (`routing.worker.storing`). What must not wait says so with `at_once`.
"""

from __future__ import annotations

import errno
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from traceback import format_exc
from typing import Any, TypeVar

from celery import states
from celery.app.task import get_actual_ignore_result
from celery.exceptions import Reject
from celery.utils.time import get_exponential_backoff_interval

from routing.message.exemption import accepted_before
from routing.redis.faults import Fault, fault_of, is_passing
from routing.transport.gathering import current
from routing.worker.forks import rest
from routing.worker.softlimit import without_soft_limit
from routing.worker.stopping import is_cut_off
from routing.worker.storing import encoded, is_redis, store, stores_like_redis

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Milliseconds before the second try, doubled with each, and at most, unless the app's settings say
#: otherwise: a backend that is back is noticed within seconds.
FIRST_WAIT_MS = 100
LONGEST_WAIT_MS = 2000


class CutOff(Reject):
    """The worker stops cold while an outcome waits: its message goes back."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(error, requeue=True)


#: In a request: its retry is stored, so that the tracer does not store it again, after it was sent.
RETRY_STORED = "_celeriac_retry_stored"

_RETRYING: ContextVar[tuple[Any, Any] | None] = ContextVar("celeriac_retrying", default=None)

_AT_ONCE: ContextVar[bool] = ContextVar("celeriac_at_once", default=False)

#: What databases say of a value, or a statement, that they will never take (PEP 249).
_WRONG_RESULTS = frozenset({"DataError", "ProgrammingError", "NotSupportedError", "StatementError"})
#: What a disk says of a file that cannot be.
_WRONG_NAMES = frozenset({errno.ENAMETOOLONG, errno.EINVAL, errno.EISDIR})

#: Commands that count: after a lost connection nobody knows whether they were done.
_COUNTING = frozenset({"INCR", "INCRBY", "DECR", "DECRBY"})


def wait_for_results(app: Any, *, silence_seconds: float, is_green: bool = False) -> None:
    """Let the tasks of this worker wait for the result backend, unless the app has said no.

    Only in workers: a caller who asks for a result wants an error.

    Arguments:
        app: the worker's app.
        silence_seconds: after which a result server that says nothing is taken for gone.
        is_green: its tasks are greenlets: they share one Redis backend, as else each of them makes
            one of its own, with a connection, which four fifths of its time would go to.
    """
    defaults = {
        # What a silent link swallows is stored again over another one.
        "redis_socket_timeout": silence_seconds,
        "redis_socket_connect_timeout": silence_seconds,
        "result_backend_always_retry": True,
        "result_backend_base_sleep_between_retries_ms": FIRST_WAIT_MS,
        "result_backend_max_sleep_between_retries_ms": LONGEST_WAIT_MS,
    }
    for setting, value in defaults.items():
        if not app.conf.value_set_for(setting):
            app.conf[setting] = value
    if not hasattr(app, "_celeriac_waits"):
        make = app._get_backend
        app._get_backend = lambda: _patient(make())
    app._celeriac_shares = is_green and not app.conf.value_set_for("result_backend_thread_safe")
    app._celeriac_waits = app.conf.result_backend_always_retry
    if (made := app._backend) is not None:
        app._backend = _patient(made)


def waits(app: Any) -> bool:
    """Return whether this process waits until what its tasks became is stored and sent."""
    return bool(getattr(app, "_celeriac_waits", False))


@contextmanager
def at_once() -> Iterator[None]:
    """Let the result backend raise when it is away, whatever it does elsewhere."""
    token = _AT_ONCE.set(True)
    try:
        yield
    finally:
        _AT_ONCE.reset(token)


def until_taken(app: Any, what: str, attempt: Callable[[], T]) -> T:
    """Call what publishes, in a worker again and again while the broker is away or refuses.

    Raises:
        Exception: what would be raised again.
    """
    if not waits(app) or _AT_ONCE.get():
        return attempt()
    with without_soft_limit():
        return _until(what, attempt, is_passing, _interval)


def retried(task: Any, error: Any, attempt: Callable[[], T]) -> T:
    """Call a task's stock `retry`: in a worker until its message is taken.

    Just before that is sent, the state is stored: the next run may end before this one does.

    Arguments:
        task: the current task.
        error: why it is retried; it is raised when the retries are spent.
        attempt: calls `retry`.
    """
    if not waits(task.app):
        return attempt()

    def was_refused(refused: Exception) -> bool:
        # Everything else is said about the task, not about its message.
        reason = refused.reason if isinstance(refused, Reject) and refused is not error else None
        return isinstance(reason, Exception) and is_passing(reason)

    with without_soft_limit(), _storing_first(task, error):
        return _until("the broker", attempt, was_refused, _interval)


@contextmanager
def _storing_first(task: Any, error: Any) -> Iterator[None]:
    token = _RETRYING.set((task, error))
    try:
        yield
    finally:
        _RETRYING.reset(token)


def about_to_send(message: Any) -> None:
    """Store what has to be stored before this task message may be sent.

    Where messages are gathered, what sends them stores before it does.
    """
    if (retrying := _RETRYING.get()) is None or current() is not None:
        return
    task, error = retrying
    request = task.request
    # In either protocol.
    fields = message.headers or (message.body if isinstance(message.body, dict) else {})
    if request.id != fields.get("id") or request.is_eager or RETRY_STORED in vars(request):
        return
    if get_actual_ignore_result(task, request) and not task.store_errors_even_if_ignored:
        return
    trace = format_exc() if sys.exc_info()[0] is not None else None
    try:
        task.backend.mark_as_retry(request.id, error, trace, request=request)
    except CutOff:
        raise  # the message goes back itself, so no retry of it may be sent
    except Exception:
        # The tracer says what becomes of it, as it does without this.
        logger.debug("a retry could not be stored before it was sent", exc_info=True)
    else:
        setattr(request, RETRY_STORED, True)


class Patient:
    """What a worker's result backend does, whatever its kind."""

    always_retry: bool
    max_retries: float
    base_sleep_between_retries_ms: int
    max_sleep_between_retries_ms: int
    #: The class that it had.
    stock: type

    def _sleep(self, seconds: float) -> None:
        """What Celery's backends call between two tries, while they handle the error."""
        error = sys.exc_info()[1]
        if _AT_ONCE.get() and error is not None:
            raise error
        if is_cut_off() and error is not None:
            raise CutOff(error) from error
        rest(seconds)

    def store_result(
        self, task_id: str, result: Any, state: str, *args: Any, **options: Any
    ) -> Any:
        """Store a state; that of a task which has run is no longer subject to its soft limit."""
        kept: Any = super()
        has_run = state in states.READY_STATES or state == states.RETRY
        with without_soft_limit() if has_run else nullcontext():
            return kept.store_result(task_id, result, state, *args, **options)

    def on_chord_part_return(self, *args: Any, **options: Any) -> Any:
        """Count a part of a chord, whose task has run."""
        kept: Any = super()
        with without_soft_limit():
            return kept.on_chord_part_return(*args, **options)

    def exception_safe_to_retry(self, exc: Exception) -> bool:
        """Tell what may pass: what Celery says of its database, and a server or disk that is away.

        Not what is wrong with the result itself, which would hold its slot for ever.
        """
        if type(exc).__name__ in _WRONG_RESULTS:
            return False
        kept: Any = super()
        is_away = isinstance(exc, OSError) and exc.errno not in _WRONG_NAMES
        return is_away or bool(kept.exception_safe_to_retry(exc))

    def mark_as_retry(
        self, task_id: str, exc: Any, traceback: Any = None, request: Any = None, **options: Any
    ) -> Any:
        """Store that a task is retried, unless that was done before the retry was sent."""
        if request is not None and vars(request).pop(RETRY_STORED, False):
            return None
        kept: Any = super()
        return kept.mark_as_retry(task_id, exc, traceback=traceback, request=request, **options)

    def _call_task_errbacks(self, request: Any, exc: Any, traceback: Any) -> None:
        """Call error callbacks; those that are sent wait for the broker, as links do."""
        kept: Any = super()
        with accepted_before():
            kept._call_task_errbacks(request, exc, traceback)

    def __reduce__(self, args: Any = (), kwargs: Any = None) -> Any:
        kept: Any = super()
        make, (_, *rest) = kept.__reduce__(args, kwargs or {})
        return make, (self.stock, *rest)


class PatientRedis(Patient):
    """What a worker's Redis backend does: its client waits, whatever it is asked."""

    def ensure(self, fun: Callable[..., Any], args: Any, **policy: Any) -> Any:
        """Call what the client does: it has waited already, where it may."""
        if self.always_retry or _AT_ONCE.get():
            return fun(*args)
        kept: Any = super()
        return kept.ensure(fun, args, **policy)

    def exception_safe_to_retry(self, exc: Exception) -> bool:
        """Tell no: the client has waited already."""
        return False

    def waits_for(self, error: Exception, *, repeatable: bool) -> bool:
        """Return whether to try again after an error."""
        if _AT_ONCE.get() or not self.always_retry:
            return False
        return is_passing(error) and (repeatable or fault_of(error) is Fault.REFUSED)

    def until_answered(self, attempt: Callable[[], Any], *, repeatable: bool = True) -> Any:
        """Call the server, again and again while it is away or refuses."""
        return _until(
            "the result backend",
            attempt,
            partial(self.waits_for, repeatable=repeatable),
            self._interval,
            at_most=self.max_retries,
        )

    def _interval(self, tries: int) -> float:
        seconds: float = get_exponential_backoff_interval(
            self.base_sleep_between_retries_ms, tries, self.max_sleep_between_retries_ms, True
        )
        return seconds / 1000

    def _get_client(self) -> Any:
        kept: Any = super()
        return type("PatientClient", (_PatientClient, kept._get_client()), {"backend": self})


class StoringRedis(PatientRedis):
    """The same, where results are stored in Celery's own way: each state in one step."""

    def _store_result(
        self,
        task_id: str,
        result: Any,
        state: str,
        traceback: Any = None,
        request: Any = None,
        **_: Any,
    ) -> Any:
        failed = store(self, [encoded(self, task_id, result, state, traceback, request)])
        for error in failed.values():
            raise error
        return result


class _PatientClient:
    backend: PatientRedis

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send a command, again and again while the server is away or refuses."""
        client: Any = super()
        return self.backend.until_answered(
            lambda: client.execute_command(*args, **options),
            repeatable=args[0] not in _COUNTING,
        )

    def pipeline(self, *args: Any, **options: Any) -> Any:
        """Return a pipeline whose ``execute`` does the same."""
        client: Any = super()
        pipe = client.pipeline(*args, **options)
        execute = pipe.execute

        def execute_patiently(raise_on_error: bool = True) -> Any:
            commands = list(pipe.command_stack)

            def attempt() -> Any:
                pipe.command_stack = list(commands)  # a try empties it
                return execute(raise_on_error)

            return self.backend.until_answered(attempt)

        pipe.execute = execute_patiently
        return pipe


_CLASSES: dict[type, type] = {}


def stock_class(backend: Any) -> type:
    """Return the class that a backend has, or had before it became patient."""
    return backend.stock if isinstance(backend, Patient) else type(backend)


def _patient(backend: Any) -> Any:
    kind = type(backend)
    if not issubclass(kind, Patient):
        backend.__class__ = _patient_class(kind)
        # Made for the class that it had.
        for name in ("client", *(name for name in vars(kind) if name.startswith("_chord_"))):
            vars(backend).pop(name, None)
    conf = backend.app.conf
    if is_redis(kind):
        if backend.app._celeriac_shares:
            backend.thread_safe = True
        # A unix socket takes no such argument.
        if "path" not in backend.connparams and not conf.value_set_for("redis_socket_keepalive"):
            backend.connparams["socket_keepalive"] = True
    backend.always_retry = conf.result_backend_always_retry
    backend.base_sleep_between_retries_ms = conf.result_backend_base_sleep_between_retries_ms
    backend.max_sleep_between_retries_ms = conf.result_backend_max_sleep_between_retries_ms
    return backend


def _patient_class(kind: Any) -> type:
    if kind not in _CLASSES:
        ours: type = Patient
        if is_redis(kind):
            ours = StoringRedis if stores_like_redis(kind) else PatientRedis
        _CLASSES[kind] = type(kind.__name__, (ours, kind), {"stock": kind})
    return _CLASSES[kind]


def _until(
    what: str,
    attempt: Callable[[], T],
    again: Callable[[Exception], bool],
    interval: Callable[[int], float],
    *,
    at_most: float = float("inf"),
) -> T:
    tries, since = 0, 0.0
    while True:
        try:
            value = attempt()
        except Exception as error:
            if tries >= at_most:
                raise
            if not again(error):
                if tries and not is_passing(error):
                    _say_waited(what, since)  # it was answered
                raise
            if is_cut_off():
                raise CutOff(error) from error
            tries += 1
            if tries == 1:
                since = time.monotonic()
                logger.warning(
                    "waiting for %s: %s: %s",
                    what,
                    type(error).__name__,
                    error,
                    extra={"event": "outcome_waits"},
                )
        else:
            if tries:
                _say_waited(what, since)
            return value
        rest(interval(tries))


def _say_waited(what: str, since: float) -> None:
    seconds = time.monotonic() - since
    logger.warning("waited %.1f s for %s", seconds, what, extra={"event": "outcome_stored"})


def _interval(tries: int) -> float:
    seconds: float = get_exponential_backoff_interval(FIRST_WAIT_MS, tries, LONGEST_WAIT_MS, True)
    return seconds / 1000
