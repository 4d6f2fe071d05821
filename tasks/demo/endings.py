"""How the rows of a run have ended, as the table and the result backend tell it.

A row has succeeded when the table has it and failed when the backend holds the failure of its item,
so the account is made of what a user would find, row by row, and a second delivery counts once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import celery
from celery import states

from tasks import database
from tasks.demo.account import Endings

CHUNK = 1_000


def endings(app: celery.Celery, run: str, sent: Mapping[int, str]) -> Endings:
    """The endings so far of the rows of this run, given the item of each."""
    landed = database.landed_numbers(run)
    open_items = {task_id: number for number, task_id in sent.items() if number not in landed}
    failures = dict(_failures(app, open_items))
    _, _, last_row_at = database.batch_totals(run)
    return Endings(
        landed=frozenset(landed),
        failed=frozenset(failures),
        last_at=max([last_row_at, *failures.values()]),
    )


def waiting(app: celery.Celery, queue: str) -> int:
    """Messages that wait in a queue; on Redis an empty queue does not exist."""
    with app.connection_for_write() as connection:
        try:
            declared = connection.default_channel.queue_declare(queue, passive=True)
        except connection.channel_errors:
            return 0
        return int(declared.message_count)


def stored_results(
    app: celery.Celery, ids: Sequence[str]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The results that are there, by task id; one round trip per thousand, no subscriptions."""
    backend = app.backend
    for start in range(0, len(ids), CHUNK):
        chunk = ids[start : start + CHUNK]
        payloads = backend.mget([backend.get_key_for_task(task_id) for task_id in chunk])
        for task_id, payload in zip(chunk, payloads, strict=True):
            if payload is not None:
                yield task_id, backend.decode_result(payload)


def disconnect_backend(app: celery.Celery) -> None:
    """Close what this thread holds open at the result backend: each thread has its own."""
    app.backend.client.connection_pool.disconnect()


def _failures(app: celery.Celery, sent: Mapping[str, int]) -> Iterator[tuple[int, float]]:
    """Rows whose item has a failure stored, with its time; given the row of each item."""
    for task_id, meta in stored_results(app, list(sent)):
        if meta["status"] == states.FAILURE:
            yield sent[task_id], _seconds(meta.get("date_done"))


def _seconds(date_done: Any) -> float:
    if date_done is None:
        return 0.0
    when = date_done if isinstance(date_done, datetime) else datetime.fromisoformat(date_done)
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
