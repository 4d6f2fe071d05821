"""The task class of batches: `@app.task(base=BatchTask)` or `@shared_task(base=BatchTask)`.

Celery puts the user's function into the class as `run`. Here it becomes `run_batch`, and `run` is
the replay of one item's outcome, so that everything Celery wraps around `run` (autoretry, tracing
tools) works item by item. A call that carries no outcome (a direct call, `apply()`, eager mode)
runs the same engine with a batch of one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, ClassVar, assert_never

from celery import Task
from celery.exceptions import Reject
from celery.utils.time import get_exponential_backoff_interval
from pydantic import BaseModel

from batching.batch import Batch
from batching.errors import InvalidItem, InvalidOption
from batching.message import any_arguments, dump_models, one_item
from batching.outcomes import OUTCOME, Dead, Done, Failed, Outcome, Repeated, Replaced, Retried
from batching.pool import results
from batching.pool.call import CALLING, ReplaceBatch, RetryBatch
from batching.pool.run import run_one
from routing import upstream
from routing.errors import DeadLetter
from routing.publish.task import BulkMethods
from routing.transport.outage import waiting_of


class BatchTask(BulkMethods, Task):
    """A task whose messages are run many at a time, and end one by one.

    Options, given to the decorator or as class attributes:

    - ``model``: pydantic model that each item is validated against; None passes arguments on as
      they are.
    - ``max_size``: most items in one call. 100 keeps a failing call cheap to repeat.
    - ``max_bytes``: most bytes of message bodies in one call; None for no bound. 8 MiB, a few
      fetches. A bigger item goes alone.
    - ``max_wait``: seconds that an item may wait for company while no slot is idle or more is on
      its way. Then its batch is next for a slot, and others may join it until the slot is there.
      0.05 is below what people notice.
    - ``key``: function of the task's arguments; items of different keys never share a call.
    - ``throws``: as in Celery, exceptions that are logged in one line; without it, those of items
      that do not fit the model or end as dead letters.

    Items are acknowledged late, after their outcome is stored; when their pool process is lost,
    they are requeued.
    """

    abstract = True
    Strategy = "batching.consumer.intake:start"
    acks_late = True
    reject_on_worker_lost = True
    throws = (InvalidItem, DeadLetter)

    model: ClassVar[type[BaseModel] | None] = None
    max_size: ClassVar[int] = 100
    max_bytes: ClassVar[int | None] = 8 * 1024**2
    max_wait: ClassVar[float] = 0.05
    key: ClassVar[Callable[..., Hashable] | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Move the user's function to `run_batch`, and check the options."""
        super().__init_subclass__(**kwargs)
        own = dict(vars(cls))
        name = own.get("name") or cls.__name__
        check(name, own)
        if own.get(upstream.DUMP_MODELS.name) is not None:
            raise InvalidOption(
                name, "pydantic", "is for one call per message; use model=YourModel"
            )
        if "run" in own:
            cls.run_batch = own["run"]  # type: ignore[method-assign]
            del cls.run
        if callable(own.get("key")) and not isinstance(own["key"], staticmethod):
            cls.key = staticmethod(own["key"])
        # Celery would call an error callback of many arguments where the task failed, with objects
        # that no message can carry. A partial it sends as a message, with the id of what failed.
        cls.__header__ = staticmethod(partial(one_item if cls.model else any_arguments))
        cls._dump_pydantic_arguments = staticmethod(dump_models)

    def run_batch(self, batch: Batch[Any]) -> Any:
        """The user's function: give outcomes, or return one result per item, or None."""
        raise NotImplementedError("Batch tasks must define the run method.")

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Return or raise one item's outcome."""
        outcome = self.request.__dict__.pop(OUTCOME, None)
        if outcome is None:
            outcome = run_one(self, args, kwargs).outcome
        return replay_outcome(self, outcome, self._retry_item)

    def retry(self, *args: Any, throw: bool = True, **options: Any) -> Any:
        """Retry: in the batch function every item without an outcome, elsewhere this item.

        Each item keeps its own number of retries.
        """
        given = dict(zip(("args", "kwargs", "exc"), args, strict=False)) | options
        calling = self.request.__dict__.get(CALLING)
        if calling is None:
            return self._retry_item(throw=throw, **given)
        outcome = Retried(given.pop("countdown", None), given.pop("exc", None), given)
        if throw:
            raise RetryBatch(outcome)
        for item in calling:
            item.conclude(outcome)
        return RetryBatch(outcome)

    def replace(self, sig: Any) -> Any:
        """Replace: in the batch function every item without an outcome, elsewhere this item."""
        if CALLING in self.request.__dict__:
            raise ReplaceBatch(Replaced(sig))
        return super().replace(sig)

    @property
    def backend(self) -> Any:
        """The result backend; while a batch is settled, the one that collects its results."""
        return results.collected() or Task.backend.fget(self)

    @backend.setter
    def backend(self, value: Any) -> None:
        self._backend = value

    def _retry_item(self, *, exc: Exception | None = None, **options: Any) -> Any:
        """Retry the current item for real.

        An invalid item never fits later, whatever `autoretry_for` says, and a dead one said so. A
        retry that can never be published ends it as a dead letter, as Celery has it; one that the
        broker does not take now waits in a worker, as that of a plain task.
        """
        if isinstance(exc, InvalidItem | DeadLetter):
            raise exc
        retry = super().retry
        return waiting_of(self.app).until_retried(self, exc, lambda: retry(exc=exc, **options))


def check(task: str, options: dict[str, Any]) -> None:
    """Check those options that are given.

    Raises:
        InvalidOption: naming the task, the option, what was expected and what was got.
    """
    for name, problem in _CHECKS.items():
        if name in options:
            found = problem(options[name])
            if found:
                raise InvalidOption(task, name, f"{found}, got {options[name]!r}")


def _size(value: object) -> str | None:
    return None if _is_positive_int(value) else "must be a whole number of items, at least 1"


def _bytes(value: object) -> str | None:
    if value is None or _is_positive_int(value):
        return None
    return "must be a whole number of bytes, at least 1, or None"


def _wait(value: object) -> str | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and 0 <= value < math.inf:  # type: ignore[operator]
        return None
    return "must be a number of seconds, at least 0"


def _key(value: object) -> str | None:
    if value is None or callable(value) or isinstance(value, staticmethod):
        return None
    return "must be a function of the task's arguments, or None"


def _model(value: object) -> str | None:
    if value is None or (isinstance(value, type) and issubclass(value, BaseModel)):
        return None
    return "must be a pydantic model class, or None"


def _is_positive_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


_CHECKS: dict[str, Callable[[object], str | None]] = {
    "max_size": _size,
    "max_bytes": _bytes,
    "max_wait": _wait,
    "key": _key,
    "model": _model,
}


def replay_outcome(task: Any, outcome: Outcome, retry: Callable[..., Any]) -> Any:
    """Return or raise an item's outcome, in the item's own request."""
    match outcome:
        case Done(result=result):
            return result
        case Failed(error=error, traceback=traceback):
            raise error.with_traceback(traceback)
        case Retried(countdown=countdown, error=error, options=options):
            if countdown is None and "eta" not in options:
                countdown = _backoff(task)
            return retry(exc=error, countdown=countdown, **options)
        case Dead(reason=reason):
            raise DeadLetter(reason)
        case Replaced(signature=signature):
            return task.replace(signature.clone())
        case Repeated():
            # The tracer's own check of the backend said otherwise in the meantime.
            raise Reject("its stored success is gone", requeue=True)
        case _:
            assert_never(outcome)


def _backoff(task: Any) -> float | None:
    """Return the countdown of the task's `retry_backoff`, None for `default_retry_delay`."""
    backoff = getattr(task, "retry_backoff", False)
    if not backoff:
        return None
    interval: float = get_exponential_backoff_interval(
        factor=int(max(1.0, float(backoff))),
        retries=task.request.retries,
        maximum=int(getattr(task, "retry_backoff_max", 600)),
        full_jitter=getattr(task, "retry_jitter", True),
    )
    return interval
