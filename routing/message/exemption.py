"""Which publishes are work that was accepted once, and so never refused by a bound.

A retry or a replacement that is refused would drop its task; a refused link, chain step or chord
body would turn a task that succeeded into a failure; a refused error callback would hide why a task
failed. They are let in and counted as overshoot.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from celery import current_task
from celery.app import amqp

from routing import upstream

_ACCEPTED_BEFORE: ContextVar[bool] = ContextVar("celeriac_accepted_before", default=False)


@contextmanager
def accepted_before() -> Iterator[None]:
    """Exempt what this context publishes meanwhile: it follows from work that was accepted."""
    token = _ACCEPTED_BEFORE.set(True)
    try:
        yield
    finally:
        _ACCEPTED_BEFORE.reset(token)


def was_accepted() -> bool:
    """Return whether all that is published here follows from work that was accepted."""
    return _ACCEPTED_BEFORE.get()


def follows_from_accepted() -> bool:
    """Return whether what is published here follows from work that was accepted: a callback or a
    chain step that a worker sends for a task which ran, or what is within `accepted_before`."""
    return was_accepted() or bool(upstream.IS_CALLBACK.of(amqp).get())


def is_exempt(headers: Mapping[str, Any]) -> bool:
    """Return whether a task message with these headers was accepted before.

    True for a retry, for what takes the place of a task (``self.replace``), for a callback or chain
    step that a worker sends for a task which ran, for the body of the chord that the current task
    belongs to, and within `accepted_before`.
    """
    if headers.get("retries") or headers.get("replaced_task_nesting"):
        return True
    if follows_from_accepted():
        return True
    return _is_chord_body(headers)


def _is_chord_body(headers: Mapping[str, Any]) -> bool:
    task = upstream.CURRENT_OBJECT.of(current_task)() if current_task else None
    chord = task.request.chord if task is not None else None
    if not isinstance(chord, Mapping):
        return False
    options = chord.get("options") or {}
    return bool(headers.get("id")) and options.get("task_id") == headers["id"]
