"""The `run` of a batch task, which Celery and what surrounds it call in two ways.

With a batch it is the function that people have written. With the arguments of one item it is that
item's outcome: so Celery's tracer, autoretry and tracing tools end each item as a plain task.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import iscoroutine
from typing import Any

from celery import Task
from celery.app.trace import task_has_custom

from batching.batch import Batch
from batching.pool.loop import finish

#: In the request of a task while its function runs: the batch, which `retry` looks for.
CALLING = "_batching_calling"


def entry(written: Any) -> Callable[..., Any]:
    """Return the `run` of a class.

    Arguments:
        written: what its body, or that of a mixin, has under this name.
    """
    function = written.__func__ if isinstance(written, staticmethod | classmethod) else written

    @wraps(function)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        # An abstract class, as Batch is, is slow to be asked for what is none of its instances.
        if kwargs or len(args) != 1 or Batch not in type(batch := args[0]).__mro__:
            return self.run_item(args, kwargs)
        batch.raised = None
        try:
            returned = written.__get__(self, type(self))(batch)
            return finish(returned) if iscoroutine(returned) else returned
        except BaseException as error:
            batch.raised = error
            raise

    # Whoever looks at its parameters wants those of a call, which are any.
    del run.__wrapped__
    run.tells_batches = True  # type: ignore[attr-defined]
    return run


def written_run(cls: type) -> Any:
    """Return what a class, or the next of those it comes from, has as `run`; None for an entry."""
    for base in cls.__mro__:
        if (found := vars(base).get("run")) is not None:
            return None if hasattr(found, "tells_batches") else found
    return None


def surrounded(task: Any) -> Callable[[Batch[Any]], Any]:
    """Return what calls a task's function as Celery calls that of a plain task.

    That is the task itself where its class has a ``__call__`` of its own.
    """
    return task if task_has_custom(task, "__call__") else task.run  # type: ignore[no-any-return]


class Replay:
    """Marks the class of a task whose items are replayed."""


_replays: dict[type, type] = {}


def replaying(task: Any) -> Any:
    """Return the task as the tracer of its items sees it: nothing surrounds a replay."""
    cls = type(task)
    if not task_has_custom(task, "__call__"):
        return task
    if cls not in _replays:
        _replays[cls] = type(cls.__name__, (Replay, cls), {"__call__": Task.__call__})
    view: Any = object.__new__(_replays[cls])
    view.__dict__ = task.__dict__
    return view
