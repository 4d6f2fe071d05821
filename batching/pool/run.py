"""What runs in the pool for one batch: open, validate, call once, settle each item.

`run_parcels` is sent by the worker's parent with the parcels of one batch and answers with how each
item ended, in order. It raises nothing but exits, because threads, gevent and solo pools would lose
the answer: when outcomes could not be stored it answers `NotSettled`, and the parent gives every
message back.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from celery import _state, current_app
from celery.app.task import Context
from celery.exceptions import Ignore, Retry
from kombu.serialization import prepare_accept_content
from kombu.utils.uuid import uuid

from batching.batch import Item
from batching.errors import InvalidItem, NotSettled
from batching.message import Parcel, unpack, value_of
from batching.outcomes import Failed, Repeated
from batching.pool import results
from batching.pool.call import call_function
from batching.pool.settle import Ended, Settling, ignores_result, unstorable
from routing import upstream
from routing.message.evidence import text_of
from routing.redis.faults import is_final
from routing.worker.exits import PROCESS_EXITS, Exits
from routing.worker.gc_tuning import GROWTH, paused
from routing.worker.softlimit import SOFT_LIMIT
from routing.worker.traced import raise_exit

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Opened:
    """An item with the request that its tracer gets."""

    item: Item[Any]
    request: dict[str, Any]


def run_parcels(
    name: str,
    parcels: Sequence[Parcel],
    hostname: str,
    soft_limit: bool,
    exits: Exits = PROCESS_EXITS,
) -> list[Ended] | NotSettled:
    """Run one batch of the task called `name`.

    Raises:
        BaseException: an exit.
    """
    app = upstream.CURRENT_OBJECT.of(current_app)()
    task = app.tasks[name]
    try:
        with paused():
            opened = _open_all(task, parcels, hostname)
        _skip_repeated(task, opened)
        to_run = [one for one in opened if one.item.outcome is None]
        _mark_started(task, to_run, hostname)
        items = [one.item for one in to_run]
        seconds = _call(task, items, hostname, soft_limit=soft_limit, exits=exits)
        share_seconds = seconds / len(to_run) if to_run else 0.0
        settling = Settling(task, hostname=hostname, share_seconds=share_seconds, exits=exits)
        return _settle(task, opened, settling)
    except BaseException as error:
        if exits.has(error):
            raise_exit(error)
        _log_not_settled(name, len(parcels), error)
        return NotSettled(f"{type(error).__name__}: {text_of(error)}")
    finally:
        GROWTH.look()
        if soft_limit:
            SOFT_LIMIT.restore()


def run_one(task: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Item[Any]:
    """Run a batch of one, for a direct call, `apply()` and eager mode; the item has its outcome."""
    request = task.request
    item = _item(
        task,
        request.id or uuid(),
        args,
        kwargs,
        retries=request.retries,
        headers=request.headers,
    )
    if item.outcome is None:
        call_function(task, [item])
    return item


def _open_all(task: Any, parcels: Sequence[Parcel], hostname: str) -> list[_Opened]:
    accept = prepare_accept_content(task.app.conf.accept_content)
    opened = []
    for parcel in parcels:
        request, args, kwargs, own = unpack(parcel, hostname=hostname, accept=accept)
        item = _item(
            task,
            request["id"],
            args,
            kwargs,
            retries=request.get("retries", 0),
            headers=own,
        )
        if parcel.invalid is not None:
            item.outcome = Failed(InvalidItem("key", parcel.invalid))
        opened.append(_Opened(item, request))
    return opened


def _item(
    task: Any,
    item_id: str,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    *,
    retries: int,
    headers: Any,
) -> Item[Any]:
    """Return the item; one that does not fit the model has failed already."""
    try:
        value, invalid = value_of(task.model, args, kwargs), None
    except InvalidItem as error:
        value, invalid = None, Failed(error)
    item: Item[Any] = Item(
        item_id, value, args=args, kwargs=kwargs, attempt=(retries or 0) + 1, headers=headers
    )
    item.outcome = invalid
    return item


def _skip_repeated(task: Any, opened: Sequence[_Opened]) -> None:
    """Take out items that are delivered again although their success is stored.

    Celery's own check of `worker_deduplicate_successful_tasks` is in the tracer: too late, because
    the function would have run.
    """
    conf = task.app.conf
    if not (conf.worker_deduplicate_successful_tasks and task.acks_late):
        return
    again = {
        one.item.id: one.item
        for one in opened
        if (one.request.get("delivery_info") or {}).get("redelivered")
    }
    if not again or not task.backend.persistent:
        return
    for item_id in results.stored_successes(task.backend, list(again)):
        again[item_id].outcome = Repeated()


def _mark_started(task: Any, opened: Sequence[_Opened], hostname: str) -> None:
    if not task.track_started:
        return
    requests = [one.request for one in opened if not ignores_result(task, one.request)]
    meta = {"pid": os.getpid(), "hostname": hostname}
    results.mark_started(task.backend, task, requests, meta)


def _call(
    task: Any, items: list[Item[Any]], hostname: str, *, soft_limit: bool, exits: Exits
) -> float:
    """Call the function inside a request of its own: it belongs to the batch, not to one item."""
    context = Context(
        task=task.name,
        hostname=hostname,
        called_directly=False,
        is_eager=False,
        delivery_info={},
        headers={},
    )
    upstream.TASK_STACK.of(_state).push(task)
    task.request_stack.push(context)
    try:
        return call_function(task, items, soft_limit=soft_limit, exits=exits).seconds
    finally:
        task.request_stack.pop()
        upstream.TASK_STACK.of(_state).pop()


def _settle(task: Any, opened: Sequence[_Opened], settling: Settling) -> list[Ended]:
    with results.collecting(task.backend, task) as refused, paused():
        ended = [settling.settle(one.item, one.request) for one in opened]
    return [_end(task, one, end, refused) for one, end in zip(opened, ended, strict=True)]


def _end(task: Any, one: _Opened, ended: Ended, refused: results.Refused) -> Ended:
    """Return how an item ends: as a plain task, by what of it is refused for good."""
    if (unstored := refused.results.get(one.item.id)) is not None:
        return unstorable(unstored)
    if (unsent := refused.messages.get(one.item.id)) is None:
        return ended
    _, result, _ = ended.outcome
    is_over = not isinstance(getattr(result, "exception", None), Retry | Ignore)
    if not is_over and not ignores_result(task, one.request):
        # A success or failure that is stored stays: it is final.
        _fail(task, one, unsent)
    return unstorable(unsent)


def _fail(task: Any, one: _Opened, error: Exception) -> None:
    try:
        task.backend.mark_as_failure(one.item.id, error, request=Context(one.request))
    except Exception as problem:
        if not is_final(problem):
            raise
        logger.exception("the failure of item %s cannot be stored", one.item.id)


def _log_not_settled(name: str, count: int, error: BaseException) -> None:
    logger.error(
        "Batch of %d %s could not be settled, its messages are requeued: %r",
        count,
        name,
        error,
        exc_info=error,
        extra={"event": "batch_not_settled"},
    )
