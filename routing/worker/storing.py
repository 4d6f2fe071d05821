"""States of tasks on their way into a Redis result backend.

Celery reads what is stored, decides, and writes: between the two another run of the same task may
end. `store.lua` does both in one step. So no state that is final is replaced by one that is not:
success stays for good; a failure or a revocation gives way only to another ending, such as the
success of a dead letter that is replayed. Until such a run ends, its last ending is what is told.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from celery import states
from celery.exceptions import BackendStoreError
from kombu.utils.encoding import bytes_to_str, ensure_bytes

from routing import upstream
from routing.redis.scripts import run_script

try:
    from celery.backends.redis import RedisBackend
except ImportError:  # pragma: no cover - redis is a dependency of ours
    RedisBackend = None

#: Most results of one script call, and their bytes: a few milliseconds of the server.
STORE_AT_MOST = 200
STORE_BYTES = 1024**2

#: Endings that give way only to another ending.
_ENDED = frozenset({states.FAILURE, states.REVOKED})


class Result(NamedTuple):
    """One encoded state, and where it goes."""

    task_id: str
    key: Any
    value: bytes
    state: str


def is_redis(kind: Any) -> bool:
    """Return whether a backend's class is Celery's Redis backend, or made from it."""
    return RedisBackend is not None and issubclass(kind, RedisBackend)


def stores_like_redis(kind: Any) -> bool:
    """Return whether a backend's class stores results as Celery's Redis backend does."""
    return (
        is_redis(kind)
        and kind.store_result is RedisBackend.store_result
        and upstream.REDIS_STORE.of(kind) is upstream.REDIS_STORE.of(RedisBackend)
        and kind.set is RedisBackend.set
        and upstream.REDIS_SET.of(kind) is upstream.REDIS_SET.of(RedisBackend)
    )


def encoded(
    backend: Any, task_id: str, result: Any, state: str, traceback: Any, request: Any
) -> Result:
    """Return a state as it is stored; the result is encoded already.

    Raises:
        BackendStoreError: it is too large.
        kombu.exceptions.EncodeError: it cannot be encoded.
    """
    meta = upstream.RESULT_META.of(backend)(
        result=result, state=state, traceback=traceback, request=request
    )
    meta["task_id"] = bytes_to_str(task_id)
    value = ensure_bytes(backend.encode(meta))
    if len(value) > upstream.LARGEST_VALUE.of(backend):
        raise BackendStoreError("value too large for Redis backend", state=state, task_id=task_id)
    return Result(task_id, backend.get_key_for_task(task_id), value, state)


def store(backend: Any, results: Sequence[Result]) -> dict[str, Exception]:
    """Store states; returns those that can never be stored, by task id.

    Raises:
        redis.exceptions.RedisError: the server is away or refuses; storing twice changes nothing.
    """
    failed: dict[str, Exception] = {}
    for lot in _lots(results):
        unread = _store_lot(backend, lot, [b""] * len(lot), failed)
        while unread:
            unread = _store_lot(backend, *_replaceable(backend, unread), failed)
    return failed


def _lots(results: Sequence[Result]) -> Iterator[list[Result]]:
    lot: list[Result] = []
    size = 0
    for result in results:
        lot.append(result)
        size += len(result.value)
        if len(lot) >= STORE_AT_MOST or size >= STORE_BYTES:
            yield lot
            lot, size = [], 0
    if lot:
        yield lot


def _store_lot(
    backend: Any, lot: Sequence[Result], known: Sequence[bytes], failed: dict[str, Exception]
) -> list[tuple[Result, bytes]]:
    """Store what can be; returns the others, with what is stored for them."""
    if not lot:
        return []
    args: list[Any] = []
    for result, value in zip(lot, known, strict=True):
        final = "1" if result.state in states.READY_STATES else ""
        args += [result.value, _seconds(backend, result.state), final, value]
    unread, refused = run_script(backend.client, "store", [result.key for result in lot], args)
    for position, error in refused:
        task_id, _, _, state = lot[position - 1]
        failed[task_id] = BackendStoreError(bytes_to_str(error), state=state, task_id=task_id)
    return [(lot[position - 1], value) for position, value in unread]


def _replaceable(
    backend: Any, unread: Sequence[tuple[Result, bytes]]
) -> tuple[list[Result], list[bytes]]:
    """Return which of these may take the place of what is stored, and that."""
    kept: list[tuple[Result, bytes]] = []
    for result, stored in unread:
        status = backend.decode_result(stored)["status"]
        is_final = result.state in states.READY_STATES
        if status != states.SUCCESS and (is_final or status not in _ENDED):
            kept.append((result, stored))
    return [result for result, _ in kept], [stored for _, stored in kept]


def _seconds(backend: Any, state: str) -> int:
    """Return how long a state is kept, as `RedisBackend.set` has it: 0 is for ever."""
    seconds = backend.failure_expires if state == states.FAILURE else None
    seconds = backend.expires if seconds is None else seconds
    return int(seconds or 0)
