"""The basic app, configured by the environment alone, as pytest-celery does it."""

from __future__ import annotations

import os

from celery import Celery

from routing import install
from tests.apps.basic import TABLE, Traces, add_tasks


def equip(app: Celery, *, traces_url: str) -> None:
    """Give an app its queue table and the tasks."""
    add_tasks(app, Traces(traces_url))
    install(app, TABLE)


if backend := os.environ.get("CELERY_RESULT_BACKEND"):
    # The broker's URL comes from CELERY_BROKER_URL, which Celery reads by itself.
    app = Celery("cluster", backend=backend)
    equip(app, traces_url=backend)
