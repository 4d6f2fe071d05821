"""One task's run in the pool, by Celery's tracer: whatever it raises, it comes back as an ending.

The tracer reports an `Exception` of the task. What else escapes (another `BaseException`, a
`MemoryError`, what a hook raises) would be taken for a lost process, or for no answer at all. Here
it becomes the task's failure, with its result, signals, hooks and error callbacks. And what is
answered is `Failure`s: nothing in it can fail to be pickled, or to be loaded in the parent.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any, Final, NoReturn, TypeAlias

from celery import _state, current_app, states
from celery.app import trace
from celery.app.task import Context
from celery.utils.serialization import get_pickleable_exception

from routing import upstream
from routing.message.codec import loads
from routing.message.evidence import text_of
from routing.worker.exits import PROCESS_EXITS, Exits
from routing.worker.failure import Failure, failure, failure_of, stand_in
from routing.worker.gc_tuning import GROWTH

logger = logging.getLogger(__name__)

#: In the place of Celery's 0 and 1 for a task that succeeded and failed: nothing is stored about
#: the failure, which is the parent's business, as that of a call in the pool that raised.
ESCAPED: Final = 2


#: What comes back for one task, as from Celery's functions for the pool: 0, 1 or `ESCAPED`; the
#: result's text, or a `Failure`; and the seconds that it ran. A plain tuple: every one is pickled.
Answer: TypeAlias = tuple[int, Any, float | None]


def surely_ending(
    target: Callable[..., Any], args: Any, exits: Exits = PROCESS_EXITS
) -> tuple[Callable[..., Any], Any]:
    """Return what to send to a pool in the place of a call, and its arguments.

    Arguments:
        target, args: the call: one task's run by Celery's tracer, or anything else, which is left
            as it is.
        exits: what ends it from outside.
    """
    if target not in (trace.fast_trace_task, trace.trace_task_ret):
        return target, args
    # What is sent to a process is pickled for every task, and needs no exits.
    run = run_traced if exits is PROCESS_EXITS else partial(run_traced, exits=exits)
    return run, (target, *args)


def run_traced(
    function: Callable[..., Any],
    name: str,
    task_id: str,
    request: Any,
    *rest: Any,
    exits: Exits = PROCESS_EXITS,
) -> Answer:
    """Run one task by Celery's function for the pool; answer how it ended.

    Raises:
        BaseException: an exit.
    """
    try:
        failed, result, runtime = function(name, task_id, request, *rest, loads=loads)
    except BaseException as error:
        if exits.has(error):
            raise_exit(error)
        return end_escaped(name, request, error, exits)
    finally:
        GROWTH.look()
    return failed, failure(result) if failed else result, runtime


def end_escaped(name: str, request: dict[str, Any], error: BaseException, exits: Exits) -> Answer:
    """End a task whose error escaped from the tracer and is no exit.

    Raises:
        BaseException: an exit, meanwhile.
    """
    if isinstance(error, Exception) and not isinstance(error, MemoryError):
        return ESCAPED, failure_of(error), None
    if (done := _success_before(error)) is not None:
        logger.error(
            "Task %s[%s] has succeeded; what was raised afterwards does not change that: %s",
            name,
            request.get("id"),
            failure_of(error).traceback,
            extra={"event": "raised_after_success"},
        )
        return done
    try:
        return 1, _fail(current_app.tasks[name], Context(request), error), None
    except BaseException as problem:
        if exits.has(problem):
            raise_exit(problem)
        return ESCAPED, failure_of(problem), None


def raise_exit(error: BaseException) -> NoReturn:
    """Raise an exit so that it arrives in the parent; call it while the exit is being handled."""
    if isinstance(error, SystemExit):
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            raise SystemExit(text_of(error)) from None
    raise error


def _success_before(error: BaseException) -> Answer | None:
    """Return the success that the tracer had stored when a hook raised; None if it had not."""
    step = error.__traceback__
    while step is not None:
        if step.tb_frame.f_code.co_name == "trace_task":
            found = step.tb_frame.f_locals
            if found.get("Rstr") is not None:
                return 0, found["Rstr"], found.get("T")
        step = step.tb_next
    return None


def _fail(task: Any, context: Any, error: BaseException) -> Failure:
    """Do what the tracer does for an error that it catches."""
    # What cannot be stored under its name is stored under it all the same.
    known: Any = error if get_pickleable_exception(error) is error else stand_in(error)
    upstream.TASK_STACK.of(_state).push(task)
    task.request_stack.push(context)
    try:
        info = _handle(task, context, known.with_traceback(error.__traceback__))
        if trace.task_has_custom(task, "after_return"):
            given = (context.id, context.args, context.kwargs)
            task.after_return(states.FAILURE, known, *given, None)
        return failure(info)
    finally:
        task.request_stack.pop()
        upstream.TASK_STACK.of(_state).pop()


def _handle(task: Any, context: Any, error: BaseException) -> Any:
    try:
        raise error  # Celery's code looks at what is being handled
    except BaseException:
        return trace.TraceInfo(states.FAILURE, error).handle_error_state(task, context)
