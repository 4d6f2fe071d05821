"""Who must not wait for room in a full queue, and why.

A producer of a queue with ``overflow = "block"`` waits, unless others would wait with it: a worker
would wait for itself, beat has other entries to send, and an event loop has everything else to do.
They get `QueueFull` at once, and it says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from celery import current_task
from celery.signals import beat_init

from routing import upstream
from routing.transport.refusals import in_event_loop

_WORKER = "a worker does not wait for room that it makes itself"
_BEAT = "beat does not wait, as it has other entries to send"
_LOOP = (
    "an event loop runs in this thread, which waiting would stop: send from another thread, as "
    "with asyncio.to_thread(task.delay, ...)"
)

_REASON: ContextVar[str] = ContextVar("celeriac_must_not_wait", default="")


@contextmanager
def as_beat() -> Iterator[None]:
    """Let nothing that this context publishes meanwhile wait: beat sends it."""
    token = _REASON.set(_BEAT)
    try:
        yield
    finally:
        _REASON.reset(token)


def why_not(queue: str, *, is_worker: bool) -> str:
    """Return why the caller must not wait for room in a queue, "" when it may.

    Arguments:
        queue: the queue.
        is_worker: whether this is a worker's own process.
    """
    if is_worker or _is_a_task_of_its_consumer(queue):
        return _WORKER
    return _REASON.get() or (_LOOP if in_event_loop() else "")


def _is_a_task_of_its_consumer(queue: str) -> bool:
    """Whether a task runs here, in a pool process, whose worker consumes the queue."""
    task: Any = upstream.CURRENT_OBJECT.of(current_task)() if current_task else None
    if task is None or task.request.called_directly or task.request.is_eager:
        return False
    return queue in task.app.amqp.queues.consume_from


def _remember_beat(**_: Any) -> None:
    # It is sent in the thread that will send all entries, whichever scheduler makes them.
    _REASON.set(_BEAT)


beat_init.connect(_remember_beat, weak=False, dispatch_uid="celeriac")
