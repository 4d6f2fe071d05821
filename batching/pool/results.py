"""Results of a whole batch, written in one pipeline instead of one by one.

Celery's tracer stores each item's state through `task.backend`. While a batch is settled, that is a
`collecting` view of the Redis backend: the same object, with the two methods that talk to the
server replaced by ones that keep what they were given. Then everything is written: all states, so
that nothing that the batch sends can be overtaken by them; then the chord parts, which count only
results that exist; then the retries, links and error callbacks, which were gathered meanwhile. Each
step waits for its server. When it raises, nothing of the batch may be acknowledged.

Other backends are left alone: each result is stored by itself, as Celery does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from celery import states
from celery.app.task import Context

from routing.message.exemption import accepted_before
from routing.publish.groups import Publication
from routing.redis.faults import is_final
from routing.transport.gathering import Gathering, gathering
from routing.transport.outage import waiting_of
from routing.worker.followers import count_part
from routing.worker.results import stock_class
from routing.worker.storing import Result, encoded, store, stores_like_redis

_collecting: ContextVar[Any] = ContextVar("batching_results", default=None)


class Refused(NamedTuple):
    """What of a batch was refused for good, by the id of the item that it belongs to."""

    results: dict[str, Exception]
    messages: dict[str, Exception]


class ChordPart(NamedTuple):
    """One item's part of a chord, to be counted once its result is stored."""

    request: Any
    state: str
    result: Any


class Collecting:
    """What a collecting backend does instead of talking to the server."""

    results: dict[str, Result]
    parts: list[ChordPart]

    def store_result(
        self,
        task_id: str,
        result: Any,
        state: str,
        traceback: Any = None,
        request: Any = None,
        **_: Any,
    ) -> Any:
        """Encode a state now, so that what cannot be encoded fails its own item, and keep it."""
        result = self.encode_result(result, state)  # type: ignore[attr-defined]
        earlier = self.results.get(task_id)
        # STARTED was written before the call; and as in Celery, success is final.
        if state == states.STARTED or (earlier and earlier.state == states.SUCCESS):
            return result
        self.results[task_id] = encoded(self, task_id, result, state, traceback, request)
        return result

    def on_chord_part_return(self, request: Any, state: str, result: Any, **_: Any) -> None:
        """Keep a chord part until its result is stored."""
        self.parts.append(ChordPart(request, state, result))


_classes: dict[type, type | None] = {}


def collected() -> Any:
    """Return the collecting backend while a batch is settled in this thread or greenlet."""
    return _collecting.get()


@contextmanager
def collecting(backend: Any, task: Any) -> Iterator[Refused]:
    """Collect the results of a batch, and what it sends; written and sent at the end, in one go.

    Afterwards, what it yields has the errors of the results that can never be stored, and of the
    messages that can never be sent.

    Raises:
        Exception: what the backend raises when it cannot be reached, after its own retries.
    """
    refused = Refused({}, {})
    view = _view(backend)
    token = _collecting.set(view)
    try:
        with gathering(exempt_only=True) as gathered:
            yield refused
    finally:
        _collecting.reset(token)
    if view is not None:
        refused.results.update(store(backend, list(view.results.values())))
        for part in view.parts:
            count_part(backend, task, part.request, part.state, part.result)
    refused.messages.update(_send(task.app, gathered))


def _send(app: Any, gathered: Gathering) -> dict[str, Exception]:
    """Send what the batch has to send; it is work that was accepted before.

    The result has the errors of what is refused for good, by the id of the item that sends it: the
    others have nothing to do with that.
    """
    publication = Publication(app, gathered, {})
    refused: dict[str, Exception] = {}
    while not publication.is_over:
        try:
            with accepted_before():
                waiting_of(app).until_taken("the broker", publication.publish)
        except Exception as error:
            if not is_final(error):
                raise
            refused |= dict.fromkeys(publication.skip(), error)
    return refused


def stored_successes(backend: Any, ids: list[str]) -> dict[str, Any]:
    """Return what is stored for those ids that have succeeded, by id, in one read."""
    if _collecting_class(backend) is None:
        metas = {task_id: backend.get_task_meta(task_id, cache=False) for task_id in ids}
        return {k: meta for k, meta in metas.items() if meta["status"] == states.SUCCESS}
    return _successes(backend, ids)


def mark_started(backend: Any, task: Any, requests: list[dict[str, Any]], meta: Any) -> None:
    """Store STARTED for all items before the function is called."""
    with collecting(backend, task):
        target = collected()
        if target is None:
            for request in requests:
                backend.store_result(request["id"], meta, states.STARTED, request=Context(request))
            return
        for request in requests:
            target.results[request["id"]] = encoded(
                backend, request["id"], meta, states.STARTED, None, Context(request)
            )


def _collecting_class(backend: Any) -> type | None:
    """Return the collecting subclass of a backend's class; None when it stores in its own way."""
    cls = type(backend)
    if cls not in _classes:
        slots = {"__slots__": ("parts", "results")}
        is_known = stores_like_redis(stock_class(backend))
        _classes[cls] = (
            type(f"Collecting{cls.__name__}", (Collecting, cls), slots) if is_known else None
        )
    return _classes[cls]


def _view(backend: Any) -> Any:
    """Return the backend seen through another class: one state, other methods."""
    if (cls := _collecting_class(backend)) is None:
        return None
    view: Any = object.__new__(cls)
    view.__dict__ = backend.__dict__
    view.results = {}
    view.parts = []
    return view


def _successes(backend: Any, ids: list[str]) -> dict[str, Any]:
    keys = [backend.get_key_for_task(task_id) for task_id in ids]
    payloads = backend.ensure(backend.client.mget, (keys,))
    metas = {k: backend.decode_result(raw) for k, raw in zip(ids, payloads, strict=True) if raw}
    return {k: meta for k, meta in metas.items() if meta["status"] == states.SUCCESS}
