"""The batch task of `trickled`, as celery-batches has it; nothing of ours is imported.

It runs in an environment of its own. ``python elsewhere.py RATE SECONDS`` and ``... burst COUNT``
publish as `trickled` does.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import time
from pathlib import Path
from typing import Any

from celery import Celery
from celery.signals import worker_ready
from celery_batches import Batches  # type: ignore[import-not-found]

# As in `trickled`.
QUEUE = "trickle"
MAX_SIZE = 100
MAX_WAIT_SECONDS = 0.03
CALL_SECONDS = 0.3
TICK_SECONDS = 0.005
CALL = struct.Struct("=qqi")

DIRECTORY = Path(os.environ["BENCH_DIRECTORY"])

app = Celery("elsewhere", broker=os.environ["BENCH_BROKER"])
app.conf.update(
    task_ignore_result=True,
    task_default_queue=QUEUE,
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
    task_acks_late=True,
    # As many as may run and gather: it knows no other bound.
    worker_prefetch_multiplier=2 * MAX_SIZE,
)


@app.task(name="bench.gather", base=Batches, flush_every=MAX_SIZE, flush_interval=MAX_WAIT_SECONDS)
def gather(requests: Any) -> None:
    """Take as long as any call, and note it."""
    began = time.monotonic_ns()
    waits = [began - request.args[0] for request in requests]
    time.sleep(CALL_SECONDS)
    took = time.monotonic_ns() - began
    text = CALL.pack(began, took, len(waits)) + struct.pack(f"={len(waits)}q", *waits)
    with (DIRECTORY / f"calls.{os.getpid()}").open("ab", buffering=0) as file:
        file.write(text)


@worker_ready.connect
def ready(sender: Any, **_: Any) -> None:
    """Say that this worker consumes."""
    (DIRECTORY / f"ready.{sender.hostname}").touch()


def publish(first: str, second: str) -> int:
    """Publish steadily, or at once."""
    if first == "burst":
        for _ in range(int(second)):
            gather.delay(time.monotonic_ns())
        return int(second)
    rate, seconds = float(first), float(second)
    began, sent, total = time.monotonic(), 0, int(rate * seconds)
    while sent < total:
        for _ in range(min(total, int((time.monotonic() - began) * rate)) - sent):
            gather.delay(time.monotonic_ns())
            sent += 1
        time.sleep(TICK_SECONDS)
    return sent


if __name__ == "__main__":
    print(json.dumps({"count": publish(*sys.argv[1:])}))
