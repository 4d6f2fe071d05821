"""Django's connections around a call: looked at once before it and once after its items' endings.

Celery's fixup closes them before and after each task. The items of a batch end by Celery's tracer,
so it would do that hundreds of times for one call, and not before the function runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any
from weakref import ReferenceType

from celery import signals
from celery.fixups.django import DjangoWorkerFixup
from celery.utils.dispatch import Signal

logger = logging.getLogger(__name__)

#: Whether the items of a batch end.
_is_within: ContextVar[bool] = ContextVar("batching_within_call", default=False)

#: The fixups that were found, and leave the items of batches alone.
_adopted: dict[DjangoWorkerFixup, None] = {}


@contextmanager
def connections_around(task: Any) -> Iterator[None]:
    """Do for the call within, and its items, what Celery does for a task."""
    if not (fixups := _found()):
        yield
        return
    _call_each([fixup.on_task_prerun for fixup in fixups], task)
    token = _is_within.set(True)
    try:
        yield
    finally:
        _is_within.reset(token)
        _call_each([fixup.on_task_postrun for fixup in fixups], task)


def _call_each(receivers: Sequence[Callable[..., None]], task: Any) -> None:
    """Call these as a signal does: what they raise is logged, and no ending depends on it."""
    for receiver in receivers:
        try:
            receiver(sender=task)
        except Exception:
            logger.exception("%r failed", receiver)


def _found() -> list[DjangoWorkerFixup]:
    """Return the fixups that are connected, and have them leave the items of batches alone."""
    for _, receiver in signals.task_prerun.receivers or ():
        bound = receiver() if isinstance(receiver, ReferenceType) else receiver
        fixup = getattr(bound, "__self__", None)
        if isinstance(fixup, DjangoWorkerFixup) and fixup not in _adopted:
            _adopted[fixup] = None
            _leave_items(signals.task_prerun, fixup.on_task_prerun)
            _leave_items(signals.task_postrun, fixup.on_task_postrun)
    return list(_adopted)


def _leave_items(signal: Signal, receiver: Any) -> None:
    signal.disconnect(receiver)
    signal.connect(partial(_unless_within, receiver), weak=False)


def _unless_within(receiver: Any, **fields: Any) -> None:
    if not _is_within.get():
        receiver(**fields)
