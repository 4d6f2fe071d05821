"""What is left of a call without an answer: its process was lost, or killed for its time limit."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from batching.consumer.request import ItemRequest
from batching.pool import results
from batching.pool.notes import NOTES
from routing.worker.outage import CutOff

logger = logging.getLogger(__name__)


class Remains(NamedTuple):
    """The items of a call, in order.

    Attributes:
        stored: those whose success is stored, with what is.
        outcomes: those that were given an outcome, pickled; it is yet to be settled.
        left: those that have not ended.
    """

    stored: Sequence[tuple[ItemRequest, Any]]
    outcomes: Mapping[ItemRequest, bytes]
    left: Sequence[ItemRequest]


def what_remains(task: Any, requests: Sequence[ItemRequest], page: int | None) -> Remains:
    """Return what is left of a call.

    Arguments:
        task: the task.
        requests: the items, in the order of the call.
        page: where their outcomes were noted; it is released.
    """
    noted = NOTES.read(page)
    NOTES.release(page, is_dying=True)
    successes = _stored_successes(task, requests)
    stored, outcomes, left = [], {}, []
    for place, request in enumerate(requests):
        if task.acks_late and request.acknowledged:
            continue  # it has ended, before its call was killed
        if request.id in successes:
            stored.append((request, successes[request.id]))
        elif place in noted:
            outcomes[request] = noted[place]
        else:
            left.append(request)
    return Remains(stored, outcomes, left)


def _stored_successes(task: Any, requests: Sequence[ItemRequest]) -> dict[str, Any]:
    ids = [request.id for request in requests if not request.ignore_result]
    if not ids:
        return {}
    try:
        return results.stored_successes(task.backend, ids)
    except Exception as error:
        if isinstance(error, CutOff):
            raise  # as the worker ends: they are requeued
        # No backend: then every item is handled as lost.
        logger.warning("Results of a lost batch could not be read", exc_info=True)
        return {}
