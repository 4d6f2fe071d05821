"""A Django project's app: plain and batch tasks that use its database, and what follows them.

A worker gets its broker from ``CELERIAC_TEST_BROKER``, and ``DJANGO_SETTINGS_MODULE``.
"""

from __future__ import annotations

import os
from typing import Any

from celery import Celery, signals

from batching import Batch, BatchTask
from routing import install
from tests.apps.basic import Traces

TABLE = {"queues": {"default": {"prefetch": 1_000}}, "lease_seconds": 3}

#: What happened, in order: "open" for a connection to the database, the number of items of a call,
#: "ended" for an item.
EVENTS = "test:events"


def create(broker: str) -> Celery:
    """Return the app on this broker."""
    app = Celery("djangoed", broker=broker, backend=broker, set_as_current=False)
    app.conf.update(broker_connection_retry_on_startup=True, worker_hijack_root_logger=False)
    traces = Traces(broker)

    def ask() -> None:
        from django.db import connection

        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")

    @app.task(base=BatchTask, name="djangoed.load", max_size=50, max_wait=2, shared=False)
    def load(batch: Batch[int]) -> None:
        traces.client.rpush(EVENTS, len(batch))
        ask()

    @app.task(name="djangoed.plain", shared=False)
    def plain() -> None:
        ask()

    def note_end(sender: Any = None, **_: Any) -> None:
        ask()
        traces.client.rpush(EVENTS, "ended")

    def note_open(**_: Any) -> None:
        traces.client.rpush(EVENTS, "open")

    def watch(**_: Any) -> None:
        from django.db.backends.signals import connection_created

        connection_created.connect(note_open, weak=False)

    signals.task_success.connect(note_end, weak=False)
    signals.import_modules.connect(watch, sender=app, weak=False)
    install(app, TABLE)
    return app


url = os.environ.get("CELERIAC_TEST_BROKER")
if url:
    app = create(url)
