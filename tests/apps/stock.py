"""The same tasks on stock Celery, without `install`."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery

from tests.apps.basic import Traces, add_tasks


def create(broker: str, **settings: Any) -> Celery:
    """Return a stock app on this broker."""
    app = Celery("stock", broker=broker, backend=broker, set_as_current=False)
    app.conf.update(task_default_queue="default", worker_hijack_root_logger=False, **settings)
    add_tasks(app, Traces(broker))
    return app


if broker_url := os.environ.get("CELERIAC_TEST_BROKER"):
    app = create(broker_url)
