"""One call of a batch function, and what it says about each item.

The engine behind every way to run a batch task: in a pool process with many items, and with one
item for a direct call, `apply()` and eager mode. When it returns, every item has an outcome; it
never raises what the function raised, because that is an outcome too, but for exits.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from celery.exceptions import Retry

from batching.batch import Batch, Item
from batching.errors import ResultCountError, ResultTypeError
from batching.outcomes import DONE, Done, Failed, Outcome, Replaced, Retried
from routing.worker.exits import Exits
from routing.worker.failure import stand_in
from routing.worker.softlimit import SOFT_LIMIT

#: In the request of a task while its batch function runs: what `retry` and `replace` look for.
CALLING = "_batching_calling"


# Sequences that nobody means as one result per item.
_NOT_RESULTS = (str, bytes, bytearray, memoryview, Batch)


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


@dataclass(frozen=True, slots=True)
class Called:
    """How long the function took; each item's run time is its share of that."""

    seconds: float

    def share(self, count: int) -> float:
        """Return one item's share of the call."""
        return self.seconds / count if count else 0.0


def call_function(
    task: Any, items: Sequence[Item[Any]], *, soft_limit: bool = False, exits: Exits | None = None
) -> Called:
    """Call the task's batch function with `items`, and give each an outcome.

    Not called at all without items. What is no `Exception` passes, unless `exits` are given: then
    only those pass, everything else is the items' failure. With `soft_limit` the limit's signal is
    ignored once the function has returned, until `SoftLimit.restore`: what is done must not be
    turned into a failure while it is settled.
    """
    if not items:
        return Called(0.0)
    started = time.monotonic()
    try:
        returned = _run(task, Batch(items), soft_limit)
        _conclude(items, returned)
    except RetryBatch as retry:
        _conclude_open(items, retry.retried)
    except ReplaceBatch as replace:
        _conclude_open(items, replace.replaced)
    except Retry as retry:
        # Raised by hand: Celery would mark it and send nothing.
        _conclude_open(items, Retried(_seconds(retry.when), retry.exc))
    except Exception as error:
        _conclude_open(items, Failed(error, error.__traceback__))
    except BaseException as error:
        if exits is None or exits.has(error):
            raise
        _conclude_open(items, Failed(stand_in(error), error.__traceback__))
    called = Called(time.monotonic() - started)
    _fail_all_if_twice(items)
    return called


def _run(task: Any, batch: Batch[Any], soft_limit: bool) -> Any:
    calling = task.request.__dict__
    calling[CALLING] = batch
    try:
        return task.run_batch(batch)
    finally:
        if soft_limit:
            SOFT_LIMIT.ignore()
        calling.pop(CALLING, None)


def _conclude(items: Sequence[Item[Any]], returned: Any) -> None:
    if returned is None:
        _conclude_open(items, DONE)
        return
    try:
        results = _results(returned, len(items))
        for item, result in zip(items, results, strict=True):
            item._end(Done(result))
    except (ResultTypeError, ResultCountError) as error:
        _fail_all(items, error)


def _results(returned: Any, expected: int) -> Sequence[Any]:
    if not isinstance(returned, Sequence) or isinstance(returned, _NOT_RESULTS):
        raise ResultTypeError(type(returned).__name__)
    if len(returned) != expected:
        raise ResultCountError(expected, len(returned))
    return returned


def _conclude_open(items: Sequence[Item[Any]], outcome: Outcome) -> None:
    for item in items:
        item.conclude(outcome)


def _fail_all_if_twice(items: Sequence[Item[Any]]) -> None:
    """Make a second outcome the error of the whole batch, also when the function swallowed it."""
    twice = next((item.twice for item in items if item.twice is not None), None)
    if twice is not None:
        _fail_all(items, twice)


def _fail_all(items: Sequence[Item[Any]], error: Exception) -> None:
    failed = Failed(error, error.__traceback__)
    for item in items:
        item.outcome = failed


def _seconds(when: object) -> float | None:
    return float(when) if isinstance(when, int | float) else None
