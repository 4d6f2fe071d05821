"""Result backends of a worker, which wait for their servers as `routing.worker.outage` says.

`wait_for_results` gives the app's backends, in every thread, classes that do so; they also store
each state in one step (`routing.worker.storing`).
"""

from __future__ import annotations

import errno
import logging
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

from celery import states

from routing import upstream
from routing.inflight.forks import rest
from routing.message.exemption import accepted_before
from routing.redis.faults import Fault, fault_of, is_passing
from routing.transport.outage import is_at_once, wait_by
from routing.worker.outage import (
    FIRST_WAIT_MS,
    LONGEST_WAIT_MS,
    RETRY_STORED,
    CutOff,
    WorkersWaiting,
    interval_seconds,
    until,
)
from routing.worker.softlimit import without_soft_limit
from routing.worker.stopping import is_cut_off
from routing.worker.storing import encoded, is_redis, store, stores_like_redis

logger = logging.getLogger(__name__)

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
    if not hasattr(app, "_celeriac_shares"):
        make = upstream.GET_BACKEND.of(app)
        upstream.GET_BACKEND.put(app, lambda: _patient(make()))
    app._celeriac_shares = is_green and not app.conf.value_set_for("result_backend_thread_safe")
    wait_by(app, WorkersWaiting() if app.conf.result_backend_always_retry else None)
    if (made := upstream.APP_BACKEND.of(app)) is not None:
        upstream.APP_BACKEND.put(app, _patient(made))


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
        if is_at_once() and error is not None:
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
        if self.always_retry or is_at_once():
            return fun(*args)
        kept: Any = super()
        return kept.ensure(fun, args, **policy)

    def exception_safe_to_retry(self, exc: Exception) -> bool:
        """Tell no: the client has waited already."""
        return False

    def waits_for(self, error: Exception, *, repeatable: bool) -> bool:
        """Return whether to try again after an error."""
        if is_at_once() or not self.always_retry:
            return False
        return is_passing(error) and (repeatable or fault_of(error) is Fault.REFUSED)

    def until_answered(self, attempt: Callable[[], Any], *, repeatable: bool = True) -> Any:
        """Call the server, again and again while it is away or refuses."""
        return until(
            "the result backend",
            attempt,
            partial(self.waits_for, repeatable=repeatable),
            self._interval,
            at_most=self.max_retries,
        )

    def _interval(self, tries: int) -> float:
        return interval_seconds(
            tries,
            first_ms=self.base_sleep_between_retries_ms,
            longest_ms=self.max_sleep_between_retries_ms,
        )

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
        for name in ("client", upstream.CHORD_ZSET.name):
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
