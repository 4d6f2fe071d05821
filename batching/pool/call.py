"""One call of a batch function, and what it says about each item.

The engine behind every way to run a batch task: in a pool process with many items, and with one
item for a direct call, `apply()` and eager mode. When it returns, every item has an outcome; it
never raises what the function raised, because that is an outcome too, but for exits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from datetime import datetime
from typing import Any

from celery.exceptions import Ignore, Reject, Retry

from batching.batch import DIRECT, Batch, Item
from batching.errors import ResultCountError, ResultIdsError, ResultTypeError
from batching.message import CallInfo, key_of
from batching.outcomes import DONE, Blame, Failed, Outcome, Replaced, Retried, Suspected
from batching.pool.entry import CALLING, surrounded
from batching.pool.signals import batch_postrun, batch_prerun
from routing.worker.exits import Exits
from routing.worker.failure import stand_in
from routing.worker.softlimit import SOFT_LIMIT

# What has a length and that nobody means as one result per item; sets have no order.
_NOT_RESULTS = (str, bytes, bytearray, memoryview, Batch, set, frozenset)


class RetryBatch(Retry):
    """`self.retry()` inside a batch function: every item that has no outcome yet is retried."""

    def __init__(self, retried: Retried) -> None:
        super().__init__("the batch is retried item by item", exc=retried.error)
        self.retried = retried


class ReplaceBatch(Exception):
    """`self.replace(sig)` inside a batch function: every item without an outcome is replaced."""

    def __init__(self, replaced: Replaced) -> None:
        super().__init__("the batch is replaced item by item")
        self.replaced = replaced


def call_function(
    task: Any,
    items: Sequence[Item[Any]],
    *,
    is_surrounded: bool = False,
    soft_limit: bool = False,
    exits: Exits | None = None,
    blame: Blame = Blame.EACH,
    info: CallInfo = DIRECT,
    starts: Callable[[int], None] | None = None,
) -> float:
    """Call the task's batch function with `items`, give each an outcome, and return the seconds.

    Not called at all without items. What is no `Exception` passes, unless `exits` are given: then
    only those pass, everything else is the items' failure. With `soft_limit` the limit's signal is
    ignored once the function has returned, until `SoftLimit.restore`: what is done must not be
    turned into a failure while it is settled.

    Arguments:
        is_surrounded: whether the class's own ``__call__`` is called already, as by a direct call.
        blame: who has failed when the call fails without naming anybody.
        info: what the function is told of the call.
        starts: notes the item that the function has come to, by its place.
    """
    if not items:
        return 0.0
    batch = Batch(items, info, lambda: key_of(task, items[0].args, items[0].kwargs), starts)
    batch_prerun.send(sender=task, batch=batch)
    started = time.monotonic()
    try:
        function = task.run if is_surrounded else surrounded(task)
        _conclude(items, _run(task, function, batch, soft_limit))
    except BaseException as error:
        _conclude_raised(items, _meant(error, batch), exits, blame)
    seconds = time.monotonic() - started
    _fail_what_ended_twice(items)
    batch_postrun.send(sender=task, batch=batch, seconds=seconds)
    return seconds


def _run(
    task: Any, function: Callable[[Batch[Any]], Any], batch: Batch[Any], soft_limit: bool
) -> Any:
    calling = task.request.__dict__
    calling[CALLING] = batch
    try:
        if soft_limit:
            SOFT_LIMIT.allow()
        return function(batch)
    finally:
        if soft_limit:
            SOFT_LIMIT.ignore()
        calling.pop(CALLING, None)


def _meant(error: BaseException, batch: Batch[Any]) -> BaseException:
    """Return what the function has raised where autoretry has made a retry of the batch of it."""
    is_made = isinstance(error, RetryBatch) and not isinstance(batch.raised, RetryBatch | None)
    return batch.raised if is_made and batch.raised is not None else error


def _conclude_raised(
    items: Sequence[Item[Any]], error: BaseException, exits: Exits | None, blame: Blame
) -> None:
    """End the items that have no outcome by what the call has raised."""
    match error:
        case RetryBatch():
            outcome: Outcome = error.retried
        case ReplaceBatch():
            outcome = error.replaced
        case Retry():  # raised by hand: Celery would mark it and send nothing
            outcome = _retried(error)
        case Ignore() | Reject():  # what it says of each
            outcome = Failed(error, error.__traceback__)
        case Exception():
            outcome = unnamed(items, error, error, blame)
        case _:
            if exits is None or exits.has(error):
                raise error
            outcome = unnamed(items, stand_in(error), error, blame)
    _conclude_open(items, outcome)


def unnamed(
    items: Sequence[Item[Any]], error: Exception, raised: BaseException, blame: Blame
) -> Outcome:
    """Return what an error that names no item means for those that have no outcome.

    Arguments:
        items: those that were called.
        error: the error.
        raised: what has its traceback.
        blame: who has failed then.
    """
    is_theirs = blame is Blame.EACH or (blame is Blame.ALONE and len(items) == 1)
    return (Failed if is_theirs else Suspected)(error, raised.__traceback__)


def _conclude(items: Sequence[Item[Any]], returned: Any) -> None:
    """End each item by what the function has returned: nothing, or a result for each of them."""
    if returned is None:
        _conclude_open(items, DONE)
        return
    try:
        results = _results(items, returned)
    except (ResultTypeError, ResultCountError, ResultIdsError) as error:
        _conclude_open(items, Failed(error, error.__traceback__))
        return
    for item, result in zip(items, results, strict=True):
        item.returned(result)


def _results(items: Sequence[Item[Any]], returned: Any) -> Iterable[Any]:
    if isinstance(returned, Mapping):
        return _results_by_id(items, returned)
    is_counted = isinstance(returned, Sized) and isinstance(returned, Iterable)
    if not is_counted or isinstance(returned, _NOT_RESULTS):
        raise ResultTypeError(type(returned).__name__)
    if len(returned) != len(items):
        raise ResultCountError(len(items), len(returned))
    return list(returned)


def _results_by_id(items: Sequence[Item[Any]], returned: Mapping[Any, Any]) -> Iterable[Any]:
    """Return the results in the order of the items; one that has its outcome may be left out."""
    unknown = returned.keys() - {item.id for item in items}
    missing = [item.id for item in items if item.outcome is None and item.id not in returned]
    if unknown or missing:
        raise ResultIdsError(len(items), missing, sorted(map(str, unknown)))
    return [returned.get(item.id) for item in items]


def _conclude_open(items: Sequence[Item[Any]], outcome: Outcome) -> None:
    for item in items:
        item.conclude(outcome)


def _fail_what_ended_twice(items: Sequence[Item[Any]]) -> None:
    """Fail the items that were given a second outcome, also when the function swallowed that."""
    for item in items:
        if (twice := item.twice) is not None:
            item.outcome = Failed(twice, twice.__traceback__)


def _retried(retry: Retry) -> Retried:
    """Return what a `Retry` asks for: its time is seconds from now, or a time of day."""
    when = retry.when
    if isinstance(when, datetime):
        return Retried(None, retry.exc, {"eta": when})
    return Retried(float(when) if isinstance(when, int | float) else None, retry.exc)
