"""What is told of items that have come, and one line and one event for each call."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from celery import signals
from celery.app import trace

from batching.consumer.request import ItemRequest, wants_task_events
from batching.message import CallInfo
from batching.pool.settle import Left
from routing.worker.figures import FIGURES

logger = logging.getLogger(__name__)

#: How an item has ended of which nothing else is said.
DONE = "done"


def log_received(request: ItemRequest) -> None:
    """Log an item that has come; the line of its batch is its own as well."""
    if not logger.isEnabledFor(logging.DEBUG):
        return
    context = {
        "id": request.id,
        "name": request.name,
        "args": request.argsrepr,
        "kwargs": request.kwargsrepr,
        "eta": request.eta,
    }
    logger.debug(trace.LOG_RECEIVED, context, extra={"data": context})


def announce(request: ItemRequest, consumer: Any, eventer: Any) -> None:
    """Send the signal and the event of an item that has come, as Celery's strategies do."""
    signals.task_received.send(sender=consumer, request=request)
    if not wants_task_events(eventer):
        return
    eventer.send(
        "task-received",
        uuid=request.id,
        name=request.name,
        args=request.argsrepr,
        kwargs=request.kwargsrepr,
        root_id=request.root_id,
        parent_id=request.parent_id,
        retries=request.request_dict.get("retries", 0),
        eta=request.eta and request.eta.isoformat(),
        expires=request.expires and request.expires.isoformat(),
    )


def count_lost(
    info: CallInfo, task: Any, requests: Sequence[ItemRequest], waited_seconds: float
) -> None:
    """Count a call that has left no answer, when what it left has ended or goes on.

    Arguments:
        info: the call.
        task: its task.
        requests: its items.
        waited_seconds: how long the first of them had waited when it was handed over.
    """
    outcomes = Counter(
        getattr(one.message, "ending", None) or (DONE if one.acknowledged else Left.SUSPECTED.value)
        for one in requests
    )
    FIGURES.note(task.name, info.reason, outcomes, waited_seconds=waited_seconds, ran_seconds=None)


def tell_of(
    info: CallInfo,
    task: Any,
    ends: Mapping[ItemRequest, Any],
    answer: Any,
    waited_seconds: float,
    eventer: Any,
) -> None:
    """Count a call that has come back, log it, and send the event ``batch-ended``.

    Arguments:
        info: the call.
        task: its task.
        ends: how each of its items has ended.
        answer: what the pool has answered.
        waited_seconds: how long the first of them had waited when it was handed over.
        eventer: sends task events, where somebody wants them.
    """
    outcomes = Counter(
        [
            ended.value if isinstance(ended, Left) else getattr(one.message, "ending", None) or DONE
            for one, ended in ends.items()
        ]
    )
    seconds = getattr(answer, "ran_seconds", None) or 0.0
    FIGURES.note(
        task.name,
        info.reason,
        outcomes,
        waited_seconds=waited_seconds,
        ran_seconds=seconds,
    )
    is_logged = logger.isEnabledFor(logging.INFO)
    is_sent = wants_task_events(eventer) and task.send_events
    if is_logged:
        logger.info(
            "Batch %s of %d %s: %s in %.3fs (%s, waited %.3fs)",
            info.id,
            len(ends),
            task.name,
            ", ".join(f"{count} {name}" for name, count in sorted(outcomes.items())),
            seconds,
            info.reason,
            waited_seconds,
            extra={"event": "batch_ended"},
        )
    if is_sent:
        fields = {"uuid": info.id, "name": task.name, "queue": info.queue, "size": len(ends)}
        fields |= {"reason": info.reason, "waited": waited_seconds, "runtime": seconds}
        try:
            eventer.send("batch-ended", **fields, outcomes=dict(outcomes))
        except Exception as error:  # nobody's ending depends on it
            logger.debug("the event of batch %s could not be sent: %s", info.id, error)
