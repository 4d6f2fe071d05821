"""One batch task that notes how long each item waited, and its publisher.

A call takes the same time however many items it has, as a call of a remote service does. So what a
worker gets done depends on how full its batches are.

``python -m benchmarks.apps.trickled RATE SECONDS`` publishes so many items a second for so long,
``... burst COUNT`` publishes so many at once; both print ``{"count": n, "began": t}``.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import time

from batching import Batch, BatchTask
from benchmarks.apps.settings import Settings, create_app
from routing import install

QUEUE = "trickle"

MAX_SIZE = 100
MAX_WAIT_SECONDS = 0.05
CALL_SECONDS = 0.3

#: The publisher sends what is due that often.
TICK_SECONDS = 0.005

#: Of a call: when it began and how long it took. Its items' waits follow, all in nanoseconds.
CALL = struct.Struct("=qqi")

settings = Settings.from_environment()
app = create_app("trickled", settings)
# With its defaults: a queue of batches holds what they need.
install(app, {"queues": {QUEUE: {}}})


@app.task(
    name="bench.gather",
    base=BatchTask,
    max_size=MAX_SIZE,
    max_wait=MAX_WAIT_SECONDS,
    ignore_result=True,
)
def gather(batch: Batch[int]) -> None:
    """Take as long as any call, and note it."""
    began = time.monotonic_ns()
    waits = [began - item.value for item in batch]
    time.sleep(CALL_SECONDS)
    took = time.monotonic_ns() - began
    text = CALL.pack(began, took, len(waits)) + struct.pack(f"={len(waits)}q", *waits)
    # One write for a call: threads share the file.
    with (settings.directory / f"calls.{os.getpid()}").open("ab", buffering=0) as file:
        file.write(text)


def trickle(rate: float, seconds: float) -> dict[str, float]:
    """Publish steadily, whatever becomes of it."""
    began = time.monotonic()
    sent, total = 0, int(rate * seconds)
    while sent < total:
        due = min(total, int((time.monotonic() - began) * rate)) - sent
        if due:
            gather.delay_many([time.monotonic_ns()] * due).raise_for_refused()
            sent += due
        time.sleep(TICK_SECONDS)
    return {"count": sent, "began": began}


def burst(count: int) -> dict[str, float]:
    """Publish everything at once."""
    began = time.monotonic()
    gather.delay_many([time.monotonic_ns()] * count).raise_for_refused()
    return {"count": count, "began": began}


if __name__ == "__main__":
    first, second = sys.argv[1:]
    print(
        json.dumps(burst(int(second)) if first == "burst" else trickle(float(first), int(second)))
    )
