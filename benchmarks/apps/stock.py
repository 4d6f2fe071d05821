"""Stock Celery on ``redis://``, with the settings that suit short tasks."""

from __future__ import annotations

import time

from kombu.entity import Queue

from benchmarks.apps.counters import Counter
from benchmarks.apps.settings import (
    BENCH_QUEUE,
    SINK,
    SINK_SECONDS,
    WARM_QUEUE,
    Settings,
    create_app,
)

settings = Settings.from_environment()
counter = Counter(settings.directory)

app = create_app("stock", settings)
app.conf.update(
    task_queues=[Queue(BENCH_QUEUE), Queue(WARM_QUEUE)],
    worker_prefetch_multiplier=settings.prefetch,
    # The same promise as ours: at least once. Acknowledging early is not measurably faster.
    task_acks_late=True,
)


@app.task(name="bench.noop")
def noop(value: int) -> None:
    """Do nothing but count the call."""
    counter.add(1)


@app.task(name=SINK)
def sink(value: int) -> None:
    """Take as long as a call of a database does."""
    time.sleep(SINK_SECONDS)
    counter.add(1)
