"""What the items of one call have in common, and what each adds to it."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from batching.consumer.flush import FlushReason
from batching.consumer.request import ItemRequest
from batching.errors import InvalidItem
from batching.message import cost_of, key_of
from routing.publish.decision import ALONE
from routing.publish.levels import LEVEL, NORMAL_LEVEL, URGENT


class BatchGroup(NamedTuple):
    """What must be alike in one call."""

    queue: str
    key: Any
    # A batch has one pair of time limits, so messages with limits of their own do not mix.
    time_limits: tuple[float | None, float | None]
    level: str | None = None
    priority: int | None = None
    #: Of a message that is to run alone: what no other has.
    alone: str | None = None
    #: Why its items do not wait for company; None where they do.
    at_once: FlushReason | None = None


class Grouping:
    """Finds the groups of a task's items; most are of the same as the one before.

    Arguments:
        task: the task.
    """

    def __init__(self, task: Any) -> None:
        self._task = task
        self._is_measured = task.key is not None or task.cost is not None
        #: What the last item had, and its group; together, as the timer of some pools is a thread.
        self._last: tuple[tuple[Any, ...], BatchGroup] = (), BatchGroup("", None, (None, None))

    def of(self, request: ItemRequest) -> BatchGroup:
        """Return the group of an item; its cost is noted on it, and why it has no key or cost."""
        headers = request.request_dict
        alike = (
            request.queue,
            _measure(self._task, request) if self._is_measured else None,
            tuple(request.time_limits),
            headers.get(LEVEL),
            request.delivery_info.get("priority"),
            str(request.message.delivery_tag) if headers.get(ALONE) is False else None,
        )
        before, group = self._last
        if alike != before:
            group = _made(*alike)
            self._last = alike, group
        return group


def _made(
    queue: str, key: Any, time_limits: Any, level: Any, priority: Any, alone: str | None
) -> BatchGroup:
    at_once = FlushReason.URGENT if level in URGENT else None
    if alone is not None:
        at_once = FlushReason.ALONE
    level = None if level == NORMAL_LEVEL else level  # as one that names none
    return BatchGroup(queue, key, time_limits, level, priority, alone, at_once)


def _measure(task: Any, request: ItemRequest) -> Any:
    """Return the key of an item, and note its cost."""
    what = "key"
    try:
        key = key_of(task, request.args, request.kwargs)
        what = "cost"
        request.cost = cost_of(task, request.args, request.kwargs)
    except InvalidItem:
        return InvalidItem  # the pool will find that, too
    except Exception as error:
        # The item fails by itself in the pool, where its failure is stored as any other's.
        request.unmeasured = f"it has no {what}: {error!r}"
        return InvalidItem
    return key


def due_at(request: ItemRequest, now: float) -> float | None:
    """Return when an item that expires must have its turn: when half of its time is over.

    Arguments:
        request: the item.
        now: the time, by `time.monotonic`.
    """
    if not (expires := request.expires):
        return None
    left: float = expires.timestamp() - time.time()
    return now + max(0.0, left) / 2
