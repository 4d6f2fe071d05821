"""The task class of batches: `@app.task(base=BatchTask)` or `@shared_task(base=BatchTask)`.

Celery puts the user's function into the class as `run`. Called with a batch it is that; with the
arguments of one item it is the replay of the item's outcome, so that everything Celery wraps around
`run` (autoretry, tracing tools) works item by item. A call that carries no outcome (a direct call,
`apply()`, eager mode) runs the same engine with a batch of one.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from typing import Any, ClassVar, assert_never

from celery import Task
from celery.exceptions import Reject
from celery.utils.time import get_exponential_backoff_interval
from pydantic import BaseModel

from batching.batch import Batch
from batching.errors import InvalidItem, InvalidOption
from batching.message import any_arguments, dump_models, one_item
from batching.options import check, check_names, check_together
from batching.outcomes import (
    COUNTDOWNS,
    DONE,
    OUTCOME,
    Dead,
    Done,
    Failed,
    Outcome,
    Repeated,
    Replaced,
    Retried,
    Suspected,
)
from batching.pool import results
from batching.pool.call import ReplaceBatch, RetryBatch
from batching.pool.entry import CALLING, Replay, entry, written_run
from batching.pool.run import run_many, run_one
from routing import upstream
from routing.errors import DeadLetter
from routing.publish.task import BulkMethods
from routing.transport.outage import waiting_of


class BatchTask(BulkMethods, Task):
    """A task whose messages are run many at a time, and end one by one.

    Options, given to the decorator or as class attributes:

    - ``model``: pydantic model that each item is validated against; None passes arguments on as
      they are. An instance is read back before it is sent: one that would not arrive as it is is
      refused, which costs about as much as building it.
    - ``max_size``: most items in one call. 100 keeps a failing call cheap to repeat.
    - ``max_bytes``: most bytes of message bodies in one call; None for no bound. 8 MiB, a few
      fetches. A bigger item goes alone.
    - ``max_wait``: seconds that an item may wait for company while no slot is idle or more is on
      its way. Then its batch is next for a slot, and others may join it until the slot is there.
      0.05 is below what people notice.
    - ``min_size``: a slot that is idle does not take fewer items before they have waited
      ``max_wait``; 1, so that nothing waits while a slot is idle.
    - ``cost``, ``max_cost``: what an item costs, as ``key`` says its key, and the most that the
      items of one call cost together. An item that costs more goes alone.
    - ``max_open_keys``: most keys whose items gather at a time, of each queue in one worker; with
      one more, the fullest batch gets its turn. None for no bound but the prefetch.
    - ``spread``: a batch is shared out over the slots that are idle when it is called and no more
      is on its way: for functions that compute. Each part has ``min_size`` items at least.
    - ``key``: items of different keys never share a call. The name of a field of the item, or a
      function: of the item's value with a ``model``, else of the task's arguments. With a model a
      function has each item read in the worker's parent, too; a name mostly does not.
    - ``on_error``: what becomes of the items of a call that names none of them and raises, passes a
      time limit or ends its process. ``"bisect"`` calls smaller parts until the item at fault
      stands alone, which alone is charged, or until nothing succeeds at all: then all come again
      after a while, uncharged, at most ``max_retries`` times. ``"each"`` calls each item alone.
      ``"retry"``, for effects that must not be repeated for a neighbour's sake, lets every item
      fail, or be tried again, by its own policy. What has an outcome keeps it in any case.
    - ``rate_limit``: as in Celery; it counts calls, and batches that wait for it go on growing.
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
    min_size: ClassVar[int] = 1
    max_cost: ClassVar[float | None] = None
    max_open_keys: ClassVar[int | None] = None
    spread: ClassVar[bool] = False
    key: ClassVar[Callable[..., Hashable] | str | None] = None
    cost: ClassVar[Callable[..., float] | str | None] = None
    on_error: ClassVar[str] = "bisect"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Tell calls with a batch from those for one item, and check the options."""
        super().__init_subclass__(**kwargs)
        if issubclass(cls, Replay):
            return
        own = dict(vars(cls))
        name = own.get("name") or cls.__name__
        check(name, own)
        check_names(cls, name)
        if own.get(upstream.DUMP_MODELS.name) is not None:
            raise InvalidOption(
                name, "pydantic", "is for one call per message; use model=YourModel"
            )
        if (written := written_run(cls)) is not None:
            cls.run = entry(written)  # type: ignore[method-assign]
        check_together(name, cls)
        for measure in ("key", "cost"):
            if callable(own.get(measure)) and not isinstance(own[measure], staticmethod):
                setattr(cls, measure, staticmethod(own[measure]))
        # Celery would call an error callback of many arguments where the task failed, with objects
        # that no message can carry. A partial it sends as a message, with the id of what failed.
        cls.__header__ = staticmethod(partial(one_item if cls.model else any_arguments))
        cls._dump_pydantic_arguments = staticmethod(partial(dump_models, cls.model))

    @entry
    def run(self, batch: Batch[Any]) -> Any:
        """The user's function: give outcomes, or return one result per item, or None."""
        raise NotImplementedError("Batch tasks must define the run method.")

    def run_many(self, values: Iterable[Any]) -> list[Outcome]:
        """Call the function with a batch of these values, here and now, and return how each ended.

        For tests of one's own: nothing is sent, stored, retried or searched.

        Arguments:
            values: what ``delay`` would be given for each item.

        Returns:
            `Done`, `Failed`, `Retried`, `Dead` or `Replaced` for each, in order.

        Raises:
            InvalidItem: a model would not arrive as it is.
        """
        return [item.outcome or DONE for item in run_many(self, values)]

    def run_item(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
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

    def update_state(
        self, task_id: str | None = None, state: str | None = None, meta: Any = None, **options: Any
    ) -> None:
        """Store a state: in the batch function that of every item without an outcome."""
        calling = self.request.__dict__.get(CALLING) if task_id is None else None
        open_ids = [item.id for item in calling or () if item.outcome is None]
        for one in [task_id] if calling is None else open_ids:
            super().update_state(one, state, meta, **options)

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
        if exc is not None and (countdown := options.get("countdown")) is not None:
            options["countdown"] = shared_countdown(self, exc, countdown)
        retry = super().retry
        return waiting_of(self.app).until_retried(self, exc, lambda: retry(exc=exc, **options))


def replay_outcome(task: Any, outcome: Outcome, retry: Callable[..., Any]) -> Any:
    """Return or raise an item's outcome, in the item's own request."""
    match outcome:
        case Done(result=result):
            return result
        case Failed(error=error, traceback=traceback) | Suspected(error=error, traceback=traceback):
            raise error.with_traceback(traceback)
        case Retried(countdown=countdown, error=error, options=options):
            if countdown is None and "eta" not in options:
                countdown = shared_countdown(task, error or outcome, _backoff(task))
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


def shared_countdown(task: Any, reason: object, countdown: float | None) -> float | None:
    """Return the countdown of a retry: that of an earlier item of the batch for the same reason.

    Arguments:
        reason: what is alike in those that are to come again together: their error, or what the
            function said of all of them.
        countdown: that of the first of them.
    """
    known = task.request.__dict__.get(COUNTDOWNS)
    if known is None or countdown is None:
        return countdown
    return known.setdefault((id(reason), task.request.retries), countdown)  # type: ignore[no-any-return]


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
