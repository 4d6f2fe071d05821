"""Results of a whole batch, written in one pipeline instead of one by one.

Celery's tracer stores each item's state through `task.backend`. While a batch is settled, that is a
`collecting` view of the Redis backend: the same object, with the two methods that talk to the
server replaced by ones that keep what they were given. `flush` then writes everything: one MGET,
so that a stored success is never overwritten, one pipeline of SET and PUBLISH, then the chord
parts, which count only results that exist. When it raises, nothing of the batch may be
acknowledged.

Other backends are left alone: each result is stored by itself, as Celery does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from celery import states
from celery._state import _task_stack
from celery.app.task import Context
from celery.exceptions import BackendStoreError
from kombu.utils.encoding import bytes_to_str

try:
    from celery.backends.redis import RedisBackend
except ImportError:  # pragma: no cover - redis is a dependency of ours
    RedisBackend = None

logger = logging.getLogger(__name__)

#: Payload of one pipeline; larger batches are written in several.
PIPELINE_BYTES = 8 * 1024**2

_collecting: ContextVar[Any] = ContextVar("batching_results", default=None)


class Result(NamedTuple):
    """One encoded state on its way to the backend."""

    key: Any
    payload: Any
    state: str


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
        meta = self._get_result_meta(  # type: ignore[attr-defined]
            result=result, state=state, traceback=traceback, request=request
        )
        meta["task_id"] = bytes_to_str(task_id)
        payload = self.encode(meta)  # type: ignore[attr-defined]
        if len(payload) > self._MAX_STR_VALUE_SIZE:  # type: ignore[attr-defined]
            raise BackendStoreError(
                "value too large for Redis backend", state=state, task_id=task_id
            )
        key = self.get_key_for_task(task_id)  # type: ignore[attr-defined]
        self.results[task_id] = Result(key, payload, state)
        return result

    def on_chord_part_return(self, request: Any, state: str, result: Any, **_: Any) -> None:
        """Keep a chord part until its result is stored."""
        self.parts.append(ChordPart(request, state, result))


_classes: dict[type, type | None] = {}


def collected() -> Any:
    """Return the collecting backend while a batch is settled in this thread or greenlet."""
    return _collecting.get()


@contextmanager
def collecting(backend: Any, task: Any) -> Iterator[None]:
    """Collect the results of a batch; written at the end, in one go.

    Raises:
        Exception: what the backend raises when it cannot be reached, after its own retries.
    """
    cls = _collecting_class(type(backend))
    if cls is None:
        yield
        return
    view = _view(cls, backend)
    token = _collecting.set(view)
    try:
        yield
    finally:
        _collecting.reset(token)
    _flush(backend, view, task)


def stored_successes(backend: Any, ids: list[str]) -> dict[str, Any]:
    """Return what is stored for those ids that have succeeded, by id, in one read."""
    if _collecting_class(type(backend)) is None:
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
            state = backend._get_result_meta(meta, states.STARTED, None, Context(request))
            state["task_id"] = request["id"]
            key = backend.get_key_for_task(request["id"])
            target.results[request["id"]] = Result(key, backend.encode(state), states.STARTED)


def _collecting_class(cls: type) -> type | None:
    """Return the collecting subclass of a backend's class; None when it stores in its own way."""
    if cls not in _classes:
        slots = {"__slots__": ("parts", "results")}
        name = f"Collecting{cls.__name__}"
        _classes[cls] = type(name, (Collecting, cls), slots) if _stores_like_redis(cls) else None
    return _classes[cls]


def _stores_like_redis(cls: Any) -> bool:
    return (
        RedisBackend is not None
        and issubclass(cls, RedisBackend)
        and cls.store_result is RedisBackend.store_result
        and cls._store_result is RedisBackend._store_result
        and cls.set is RedisBackend.set
        and cls._set is RedisBackend._set
    )


def _view(cls: type, backend: Any) -> Any:
    """Return the backend seen through another class: one state, other methods."""
    view: Any = object.__new__(cls)
    view.__dict__ = backend.__dict__
    view.results = {}
    view.parts = []
    return view


def _flush(backend: Any, view: Any, task: Any) -> None:
    if view.results:
        done = _successes(backend, list(view.results))
        chunk: list[Result] = []
        size = 0
        for task_id, result in view.results.items():
            if task_id in done:
                continue
            chunk.append(result)
            size += len(result.payload)
            if size >= PIPELINE_BYTES:
                _patiently(backend, _write, (backend, chunk))
                chunk, size = [], 0
        if chunk:
            _patiently(backend, _write, (backend, chunk))
    for part in view.parts:
        _return_part(backend, task, part)


def _patiently(backend: Any, call: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """Call with the backend's retries, for as long as it is configured to wait when it is away."""
    return backend._ensure_retryable(backend.ensure, call, args)


def _write(backend: Any, results: list[Result]) -> None:
    failure_expires = backend.failure_expires
    with backend.client.pipeline(transaction=False) as pipe:
        for key, payload, state in results:
            # None means the default, as in RedisBackend.set; 0 means for ever.
            expires = failure_expires if state == states.FAILURE else None
            expires = backend.expires if expires is None else expires
            pipe.set(key, payload, ex=expires or None)
            pipe.publish(key, payload)
        pipe.execute()


def _successes(backend: Any, ids: list[str]) -> dict[str, Any]:
    keys = [backend.get_key_for_task(task_id) for task_id in ids]
    payloads = _patiently(backend, backend.client.mget, (keys,))
    metas = {k: backend.decode_result(raw) for k, raw in zip(ids, payloads, strict=True) if raw}
    return {k: meta for k, meta in metas.items() if meta["status"] == states.SUCCESS}


def _return_part(backend: Any, task: Any, part: ChordPart) -> None:
    """Count a chord part with its task as the current one, as when the tracer does it."""
    _task_stack.push(task)
    task.request_stack.push(part.request)
    try:
        backend.on_chord_part_return(part.request, part.state, part.result)
    except backend.connection_errors:
        raise
    except Exception:
        # Its result is stored, which is final; running the batch again would not help the chord.
        logger.exception("Chord part of task %s could not be counted", part.request.id)
    finally:
        task.request_stack.pop()
        _task_stack.pop()
