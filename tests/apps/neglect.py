"""The basic app in workers that neglect their work; the environment is that of `tests.apps.basic`.

CELERIAC_TEST_FORGETS   when set, the pool (threads or gevent) forgets the first unit of work
"""

from __future__ import annotations

import os
import time
from typing import Any

from celery.worker.control import control_command

from tests.apps.basic import app

__all__ = ["app"]


@control_command(args=[("seconds", float)])
def block(state: Any, seconds: float) -> None:
    """Keep the worker's parent process from everything else."""
    time.sleep(seconds)


def _forgetful(pool: Any) -> None:
    on_apply = pool.on_apply
    forgotten: list[bool] = []

    def forgetting(*args: Any, **kwargs: Any) -> Any:
        if forgotten:
            return on_apply(*args, **kwargs)
        forgotten.append(True)
        return object()

    pool.on_apply = forgetting


if os.environ.get("CELERIAC_TEST_FORGETS"):
    from celery.concurrency import gevent, thread

    _forgetful(thread.TaskPool)
    _forgetful(gevent.TaskPool)
