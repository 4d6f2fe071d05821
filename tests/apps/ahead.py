"""The basic app in a worker whose clock is an hour ahead."""

from __future__ import annotations

import time
from datetime import datetime, timedelta, tzinfo
from typing import Any

from celery import Celery
from celery.worker import request

from batching import Batch, BatchTask
from tests.apps import basic

HOUR = timedelta(hours=1)


def shifted(by: timedelta) -> Any:
    """Return a class to ask for the time, which is that much off."""

    class Shifted(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Any:
            return datetime.now(tz) + by

    return Shifted


def extend(app: Celery) -> Celery:
    """Add what only these tests send."""

    @app.task(name="ahead.batch", base=BatchTask, shared=False, max_size=8, max_wait=0.0)
    def batch(batch: Batch[Any]) -> Any:
        return [item.value for item in batch]

    @app.task(name="ahead.expires", bind=True, shared=False)
    def expires(self: Any) -> Any:
        return self.request.expires

    return app


if hasattr(basic, "app"):
    app = extend(basic.app)
    request.datetime = shifted(HOUR)
    _time = time.time
    time.time = lambda: _time() + HOUR.total_seconds()
