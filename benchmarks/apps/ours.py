"""The same app with Celeriac installed, and the same task as a batch."""

from __future__ import annotations

import time

from batching import Batch, BatchTask
from benchmarks.apps.counters import Counter
from benchmarks.apps.settings import (
    BENCH_QUEUE,
    SINK,
    SINK_LOAD,
    SINK_SECONDS,
    WARM_QUEUE,
    Settings,
    create_app,
)
from routing import install

settings = Settings.from_environment()
counter = Counter(settings.directory)

app = create_app("ours", settings)
install(
    app,
    {
        "queues": {
            BENCH_QUEUE: {"prefetch": settings.prefetch},
            WARM_QUEUE: {"prefetch": settings.prefetch},
        },
        "default_queue": BENCH_QUEUE,
    },
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


# On a slow machine a batch of this size takes a while to gather: it must be full, not early.
@app.task(name="bench.load", base=BatchTask, max_size=settings.batch_size, max_wait=1.0)
def load(batch: Batch[int]) -> None:
    """Do nothing but count the items; every item ends as done."""
    counter.add(len(batch))


@app.task(name=SINK_LOAD, base=BatchTask, max_size=settings.batch_size, max_wait=1.0)
def sink_load(batch: Batch[int]) -> None:
    """Take as long as a call of a database does, however many items it has."""
    time.sleep(SINK_SECONDS)
    counter.add(len(batch))
