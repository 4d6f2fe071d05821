"""What runs in the pool for one batch: open, validate, call once, settle each item.

`run_parcels` is sent by the worker's parent with the parcels of one batch and answers with how each
item ended, in order. It raises nothing but exits, because threads, gevent and solo pools would lose
the answer: when outcomes could not be stored it answers `NotSettled`, and the parent gives every
message back.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from celery import _state, current_app
from celery.app.task import Context
from celery.exceptions import Ignore, Retry, SoftTimeLimitExceeded
from kombu.serialization import prepare_accept_content
from kombu.utils.uuid import uuid

from batching.batch import DIRECT, Item
from batching.errors import BatchError, InvalidItem, NotSettled
from batching.message import (
    CallInfo,
    Parcel,
    cost_of,
    dump_models,
    key_of,
    of_sender,
    unpack,
    value_of,
)
from batching.outcomes import Blame, Failed, Repeated, Suspected
from batching.pool import notes, results
from batching.pool.call import call_function, unnamed
from batching.pool.django import connections_around
from batching.pool.settle import (
    Left,
    Settling,
    ignores_result,
    logged_as_one,
    unstorable,
)
from routing import upstream
from routing.message.evidence import text_of
from routing.redis.faults import is_final
from routing.worker.exits import PROCESS_EXITS, Exits
from routing.worker.gc_tuning import GROWTH, paused
from routing.worker.softlimit import SOFT_LIMIT
from routing.worker.traced import Answer, raise_exit

logger = logging.getLogger(__name__)


class Answered(list[Answer | Left]):
    """How each item ended, and for how many seconds all of it ran, from the opening on."""

    ran_seconds: float | None = None


@dataclass(slots=True)
class _Opened:
    """An item with the request that its tracer gets."""

    item: Item[Any]
    request: dict[str, Any]
    #: Why the parent has found no key for it, or no cost.
    unmeasured: str | None = None


def run_parcels(
    name: str,
    parcels: Sequence[Parcel],
    hostname: str,
    soft_limit: bool,
    exits: Exits = PROCESS_EXITS,
    blame: Blame = Blame.EACH,
    page: int | None = None,
    info: CallInfo = DIRECT,
) -> Answered | NotSettled:
    """Run one batch of the task called `name`.

    Arguments:
        name: of the task.
        parcels: the items.
        hostname: of the worker.
        soft_limit: whether the call has a soft time limit.
        exits: what ends the process or the greenlet that this runs in.
        blame: who has failed when the call fails without naming anybody.
        page: where outcomes are noted as they are given.
        info: what the function is told of the call.

    Raises:
        BaseException: an exit.
    """
    began = time.monotonic()
    app = upstream.CURRENT_OBJECT.of(current_app)()
    task = app.tasks[name]
    if soft_limit:
        SOFT_LIMIT.hold()
    try:
        with paused():
            opened = _open_all(task, parcels, hostname, page)
            _validate(task, opened, soft_limit=soft_limit, blame=blame)
        _skip_repeated(task, opened)
        to_run = [one for one in opened if one.item.outcome is None]
        _mark_started(task, to_run, hostname)
        items = [one.item for one in to_run]
        with connections_around(task):
            given = {"soft_limit": soft_limit, "exits": exits, "blame": blame, "info": info}
            starts = None if page is None else partial(notes.NOTES.start, page)
            seconds = _call(task, items, hostname, **given, starts=starts)
            _tell_unnamed(name, items, blame)
            share_seconds = seconds / len(to_run) if to_run else 0.0
            settling = Settling(task, hostname=hostname, share_seconds=share_seconds, exits=exits)
            answer = Answered(_settle(task, opened, settling))
        answer.ran_seconds = time.monotonic() - began
        return answer
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
    item: Item[Any] = Item(
        request.id or uuid(),
        None,
        args=args,
        kwargs=kwargs,
        attempt=(request.retries or 0) + 1,
        headers=of_sender(request.headers or {}),
        request=vars(request),
    )
    _set_value(task, item)
    if item.outcome is None:
        call_function(task, [item], is_surrounded=True)
    return item


def run_many(task: Any, values: Iterable[Any]) -> list[Item[Any]]:
    """Run a batch of these values here, one for each key; the items have outcomes."""
    items = []
    for value in values:
        args, kwargs = dump_models(task.model, (value,), {})
        items.append(item := Item[Any](uuid(), None, args=args, kwargs=kwargs))
        _set_value(task, item)
    batches: dict[Any, list[Item[Any]]] = {}
    for item in items:
        if item.outcome is None:
            try:
                batches.setdefault(key_of(task, item.args, item.kwargs), []).append(item)
            except Exception as error:
                item.conclude(Failed(error, error.__traceback__))
    for to_run in batches.values():
        _call(task, to_run, "", exits=PROCESS_EXITS, blame=Blame.EACH, info=CallInfo(uuid()))
    return items


def _open_all(
    task: Any, parcels: Sequence[Parcel], hostname: str, page: int | None
) -> list[_Opened]:
    """Decode what the parent has packed; the items have no values yet."""
    accept = prepare_accept_content(task.app.conf.accept_content)
    noted = None if page is None else partial(notes.NOTES.note, page)
    opened = []
    for place, parcel in enumerate(parcels):
        request, args, kwargs, own = unpack(parcel, hostname=hostname, accept=accept)
        *_, unmeasured, outcome, age = parcel
        item: Item[Any] = Item(
            request["id"],
            None,
            args=args,
            kwargs=kwargs,
            attempt=(request.get("retries", 0) or 0) + 1,
            headers=own,
            request=request,
            age=age,
        )
        if outcome is not None:
            item.outcome = notes.loads(outcome)
        elif noted is not None:
            item.noted, item.place = noted, place
        opened.append(_Opened(item, request, unmeasured))
    return opened


def _validate(task: Any, opened: Sequence[_Opened], *, soft_limit: bool, blame: Blame) -> None:
    """Give each item its value; the limit strikes here as in the function, which may come first."""
    try:
        try:
            if soft_limit:
                SOFT_LIMIT.allow()
            for one in opened:
                _set_value(task, one.item)
                if one.unmeasured is not None:
                    one.item.conclude(_failed_measure(task, one.item, one.unmeasured))
        finally:
            if soft_limit:
                SOFT_LIMIT.hold()
    except SoftTimeLimitExceeded as error:
        outcome = unnamed([one.item for one in opened], error, error, blame)
        for one in opened:
            one.item.conclude(outcome)


def _set_value(task: Any, item: Item[Any]) -> None:
    """Give an item its value; one that does not fit the model has failed."""
    try:
        item.value = value_of(task.model, item.args, item.kwargs)
    except InvalidItem as error:
        item.conclude(Failed(error))


def _failed_measure(task: Any, item: Item[Any], reason: str) -> Failed:
    """Return the failure of an item without key or cost, as that of a task which raises there."""
    try:
        key_of(task, item.args, item.kwargs)
        cost_of(task, item.args, item.kwargs)
    except SoftTimeLimitExceeded:
        raise
    except Exception as error:
        error.add_note(reason)
        return Failed(error, error.__traceback__)
    return Failed(BatchError(reason))


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


def _call(task: Any, items: list[Item[Any]], hostname: str, **given: Any) -> float:
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
        return call_function(task, items, **given)
    finally:
        task.request_stack.pop()
        upstream.TASK_STACK.of(_state).pop()


def _settle(task: Any, opened: Sequence[_Opened], settling: Settling) -> list[Answer | Left]:
    with results.collecting(task.backend, task) as refused, paused(), logged_as_one():
        ended = [
            Left.SUSPECTED
            if isinstance(one.item.outcome, Suspected)
            else settling.settle(one.item, one.request)
            for one in opened
        ]
    return [_end(task, one, end, refused) for one, end in zip(opened, ended, strict=True)]


def _tell_unnamed(name: str, items: Sequence[Item[Any]], blame: Blame) -> None:
    """Log once, at the first call, what a call has raised that names no item."""
    suspected = [one.outcome for one in items if isinstance(one.outcome, Suspected)]
    if suspected:
        level = logging.ERROR if blame is Blame.ALONE else logging.DEBUG
        logger.log(
            level,
            "%d items of a batch of %d %s have failed together, and none was named: %r",
            len(suspected),
            len(items),
            name,
            suspected[0].error,
            exc_info=suspected[0].error if blame is Blame.ALONE else None,
            extra={"event": "batch_failed"},
        )


def _end(task: Any, one: _Opened, ended: Answer | Left, refused: results.Refused) -> Answer | Left:
    """Return how an item ends: as a plain task, by what of it is refused for good."""
    if (unstored := refused.results.get(one.item.id)) is not None:
        return unstorable(unstored)
    if (unsent := refused.messages.get(one.item.id)) is None:
        return ended
    result = None if isinstance(ended, Left) else ended[1]
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
