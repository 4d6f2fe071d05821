"""An app whose error callbacks are batch tasks, which note in Redis what they were called with.

A worker gets its broker from the environment: CELERIAC_TEST_BROKER.
"""

from __future__ import annotations

import os
from typing import Any

import redis
from celery import Celery
from pydantic import BaseModel, RootModel

from batching import Batch, BatchTask
from routing import install


class TaskId(RootModel[str]):
    """What an error callback is called with."""


class Row(BaseModel):
    number: int


def create(broker: str) -> Celery:
    """Return the app on this broker."""
    app = Celery("callbacks", broker=broker, backend=broker, set_as_current=False)
    app.conf.update(broker_connection_retry_on_startup=True, worker_hijack_root_logger=False)
    install(app, {"queues": {"default": {"prefetch": 400}, "full": {"max_length": 1}}})

    @app.task(name="fails", shared=False)
    def fails(*_: Any) -> None:
        raise LookupError("as it should")

    @app.task(name="fails.batch", base=BatchTask, shared=False)
    def fails_in_a_batch(batch: Batch[Any]) -> None:
        for item in batch:
            item.fail(LookupError("as it should"))

    @app.task(name="noop", shared=False)
    def noop(*_: Any) -> None: ...

    def note(self: Any, batch: Batch[Any]) -> None:
        with redis.Redis.from_url(broker) as client:
            for item in batch:
                client.rpush("called", f"{self.name} {getattr(item.value, 'root', item.value)}")

    app.task(note, name="note.any", base=BatchTask, bind=True, shared=False)
    app.task(note, name="note.id", base=BatchTask, model=TaskId, bind=True, shared=False)
    app.task(note, name="note.row", base=BatchTask, model=Row, bind=True, shared=False)
    return app


if broker_url := os.environ.get("CELERIAC_TEST_BROKER"):
    app = create(broker_url)
