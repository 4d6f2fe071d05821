"""What follows a task that has succeeded, when its process could not see to it itself.

A process may die between storing a result and telling who waits for it. Whoever then finds the
stored success tells them: parts of a chord are counted once however often they are told; links may
be sent twice, as anything that a process does before it dies.
"""

from __future__ import annotations

import logging
from typing import Any

from celery import _state, states
from celery.canvas import maybe_signature

from routing import upstream
from routing.message.exemption import accepted_before
from routing.redis.faults import is_passing

logger = logging.getLogger(__name__)


def count_part(backend: Any, task: Any, request: Any, state: str, result: Any) -> None:
    """Count a chord part with its task as the current one, as when the tracer does it.

    Raises:
        Exception: the server is away, or refuses.
    """
    upstream.TASK_STACK.of(_state).push(task)
    task.request_stack.push(request)
    try:
        backend.on_chord_part_return(request, state, result)
    except Exception as error:
        if is_passing(error):
            raise
        # Its result is stored, which is final; running it again would not help the chord.
        logger.exception("Chord part of task %s could not be counted", request.id)
    finally:
        task.request_stack.pop()
        upstream.TASK_STACK.of(_state).pop()


def count_success(task: Any, request: Any, result: Any) -> None:
    """Count the part of a task whose success is stored, if it belongs to a chord."""
    if request.chord:
        count_part(task.backend, task, request, states.SUCCESS, result)


def send_links(app: Any, request: Any, result: Any) -> None:
    """Send the links of a task, and the next step of its chain."""
    options = {"parent_id": request.id, "root_id": request.root_id or request.id}
    with accepted_before():
        for link in request.callbacks or ():
            _send(app, link, result, options)
        if request.chain:
            _send(app, request.chain[-1], result, {**options, "chain": request.chain[:-1]})


def _send(app: Any, link: Any, result: Any, options: dict[str, Any]) -> None:
    upstream.RETRY_PUBLISH.of(app.amqp)(
        maybe_signature(link, app=app).apply_async, (result,), **options
    )
