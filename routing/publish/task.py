"""What `install` gives every task of an app: bulk calls, and requests that know their ending."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial, wraps
from typing import Any

from kombu.utils.imports import symbol_by_name

from routing import upstream
from routing.errors import DeadLetter
from routing.publish.bulk import send
from routing.publish.call import Arguments, Call, Read
from routing.publish.receipts import Receipts
from routing.transport.outage import waiting_of
from routing.transport.runtime import topology_of

logger = logging.getLogger(__name__)

_REQUEST = "routing.worker.request:Request"
_STOCK_REQUEST = "celery.worker.request:Request"
_SPARES_THE_DEAD = "_celeriac_spares_the_dead"
_CHECKS = "_celeriac_checks"

#: What Celery itself gives for every retry.
_OF_A_RETRY = frozenset(("countdown", "eta", "retries"))


class BulkMethods:
    """Methods of a Celery task; not used on its own."""

    name: str

    def delay_many(self, items: Iterable[Any], **options: Any) -> Receipts:
        """Send the task once for each item: ``delay_many(rows)`` is ``delay(row)`` for every row.

        Arguments:
            items: the one argument of each message. Any iterable, also an endless generator's
                slice: it is streamed, 500 at a time.
            options: what ``apply_async`` takes, for all messages alike. ``priority`` and
                ``low_priority`` may also be functions of the item, so that each has its own:
                ``priority=lambda row: "high" if row.urgent else None``.

        Returns:
            A receipt for every item, in order: accepted, or refused and why.

        Raises:
            UnknownLevel: the level is not served for this task; nothing was published.
            BrokerUnreachable: the broker is away; its ``receipts`` are those of what was sent
                before.
        """
        return send(_call(self, options, _single), items)

    def apply_many(self, items: Iterable[Arguments], **options: Any) -> Receipts:
        """Send the task once for each pair of positional and keyword arguments.

        Arguments:
            items: ``(args, kwargs)`` pairs, streamed as in `delay_many`.
            options: what ``apply_async`` takes, for all messages alike; ``priority`` and
                ``low_priority`` also as functions of the pair.

        Returns:
            A receipt for every item, in order.

        Raises:
            UnknownLevel: the level is not served for this task; nothing was published.
            BrokerUnreachable: the broker is away; its ``receipts`` are those of what was sent
                before.
        """
        return send(_call(self, options, _pair), items)


class TaskAnnotation:
    """A Celery annotation, which reaches a task when it is bound to its app.

    Celery asks it for tasks of every class, also for those with ``base=celery.Task``, which
    ``app.Task`` does not reach.
    """

    def annotate_any(self) -> None:
        """Nothing is the same for all tasks."""

    def annotate(self, task: Any) -> dict[str, Any]:
        """Return what a task's class does not have."""
        return missing_attributes(task)


def missing_attributes(kind: Any) -> dict[str, Any]:
    """Return the attributes that a task class does not have from us; its own stay."""
    names = ("delay_many", "apply_many")
    missing = {name: getattr(BulkMethods, name) for name in names if not hasattr(kind, name)}
    if not hasattr(kind.retry, _SPARES_THE_DEAD):
        missing["retry"] = _sparing_the_dead(kind.retry)
    if not hasattr(kind.apply, _CHECKS):
        missing["apply"] = _checking(kind.apply)
    if not hasattr(kind.signature_from_request, _CHECKS):
        missing["signature_from_request"] = _following_a_level(kind.signature_from_request)
    if kind.Request == _STOCK_REQUEST:
        return {"Request": _REQUEST, **missing}
    if kind.Request != _REQUEST and not _is_derived(kind.Request):
        logger.warning(
            "task class %s has a Request of its own, %r: derive it from %s, or its endings are not "
            "counted",
            getattr(kind, "name", None) or kind.__name__,
            kind.Request,
            _REQUEST,
            extra={"event": "foreign_request"},
        )
    return missing


def _sparing_the_dead(retry: Callable[..., Any]) -> Callable[..., Any]:
    """Return a task's `retry` which lets a `DeadLetter` pass: also `autoretry_for` calls it.

    In a worker it waits for a broker that is away: the run is over, and is not to be repeated.
    """

    @wraps(retry)
    def retry_unless_dead(self: Any, *args: Any, **options: Any) -> Any:
        error = options.get("exc", args[2] if len(args) > 2 else None)
        if isinstance(error, DeadLetter):
            raise error
        attempt = partial(retry, self, *args, **options)
        return waiting_of(upstream.TASK_APP.of(self)()).until_retried(self, error, attempt)

    setattr(retry_unless_dead, _SPARES_THE_DEAD, True)
    return retry_unless_dead


def _checking(apply: Callable[..., Any]) -> Callable[..., Any]:
    """Return a task's `apply` which decides the queue as sending would.

    Eager mode and canvas end here. The task sees the queue and the level as it would in a worker.
    """

    @wraps(apply)
    def apply_checked(
        self: Any, args: Any = None, kwargs: Any = None, *more: Any, **options: Any
    ) -> Any:
        app = upstream.TASK_APP.of(self)()
        # A class below, whose `apply` calls ours, has decided already.
        is_decided = options.get("exchange") == "" and options.get("routing_key")
        if is_decided or topology_of(app) is None:
            return apply(self, args, kwargs, *more, **options)
        router = app.amqp.router
        given = {**upstream.EXEC_OPTIONS.of(self)(), **options}
        name = options.get("route_name") or self.name
        routed = router.route(given, name, args or (), kwargs or {}, self)
        queue = routed.get("queue")
        if queue is not None and not routed.get("exchange"):
            options |= {"exchange": "", "routing_key": getattr(queue, "name", queue)}
        options["priority"] = routed.get("priority")
        if (headers := routed.get("headers")) is not None:
            options["headers"] = headers
        return apply(self, args, kwargs, *more, **options)

    setattr(apply_checked, _CHECKS, True)
    return apply_checked


def _following_a_level(signature_from_request: Callable[..., Any]) -> Callable[..., Any]:
    """Return a task's `signature_from_request`, which a retry is made by.

    A retry goes back to the queue that it came from. One that names a level goes where that level
    goes, and is refused here if nothing serves it: Celery ends a retry that cannot be sent.
    """

    @wraps(signature_from_request)
    def following(
        self: Any,
        request: Any = None,
        args: Any = None,
        kwargs: Any = None,
        queue: Any = None,
        **options: Any,
    ) -> Any:
        retry = signature_from_request(self, request, args, kwargs, queue, **options)
        app = upstream.TASK_APP.of(self)()
        if topology_of(app) is None:
            return retry
        is_moved = isinstance(options.get("priority"), str) or options.get("low_priority")
        if is_moved and not queue and not options.get("exchange"):
            for name in ("queue", "exchange", "routing_key"):
                retry.options.pop(name, None)
        if is_moved or options.keys() - _OF_A_RETRY:
            app.amqp.router.check(retry.options, self.name, self)
        return retry

    setattr(following, _CHECKS, True)
    return following


def _is_derived(request: Any) -> bool:
    stock = symbol_by_name(_REQUEST)
    return isinstance(kind := symbol_by_name(request), type) and issubclass(kind, stock)


def _call(task: Any, options: dict[str, Any], read: Read) -> Call:
    return Call(
        app=upstream.TASK_APP.of(task)(), name=task.name, task=task, options=options, read=read
    )


def _single(item: Any) -> Arguments:
    return (item,), {}


def _pair(item: Any) -> Arguments:
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        raise TypeError(f"expected an (args, kwargs) pair, got {type(item).__name__}")
    args, kwargs = item
    args = () if args is None else args
    kwargs = {} if kwargs is None else kwargs
    if not isinstance(args, Sequence) or isinstance(args, (str, bytes)):
        raise TypeError(f"task args must be a list or tuple, got {type(args).__name__}")
    if not isinstance(kwargs, Mapping):
        raise TypeError(f"task keyword arguments must be a mapping, got {type(kwargs).__name__}")
    return args, kwargs
