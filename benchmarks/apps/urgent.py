"""An urgent queue with a reserved slot beside a bulk queue; each start of an urgent call is noted.

``python -m benchmarks.apps.urgent fill COUNT SECONDS BYTES`` puts bulk tasks into their queue,
``python -m benchmarks.apps.urgent call COUNT PER_SECOND`` makes urgent calls at a steady pace.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import time
from typing import BinaryIO

from benchmarks.apps.settings import WARM_QUEUE, Settings, create_app
from routing import install

URGENT, BULK = "urgent", "bulk"

#: Bulk tasks that a worker may hold: far more than it can start, as a team sets for short tasks.
PREFETCH = 2_000

SAMPLE = struct.Struct("q")

QUEUES = {
    URGENT: {"weight": 8, "reserve": 1, "prefetch": 8},
    BULK: {"prefetch": PREFETCH},
    WARM_QUEUE: {},
}


def table(*, first: str) -> dict[str, object]:
    """Return the queue table with this queue in its first line."""
    names = sorted(QUEUES, key=lambda name: name != first)
    return {"queues": {name: QUEUES[name] for name in names}}


settings = Settings.from_environment()
app = create_app("urgent", settings)
install(app, table(first=os.environ.get("BENCH_FIRST", URGENT)))

_files: dict[int, BinaryIO] = {}


@app.task(name="bench.urgent")
def urgent(sent_ns: int) -> None:
    """Note how long the call has waited for its start."""
    age = time.monotonic_ns() - sent_ns
    pid = os.getpid()
    if pid not in _files:
        _files[pid] = (settings.directory / f"ages.{pid}").open("ab", buffering=0)
    _files[pid].write(SAMPLE.pack(age))


@app.task(name="bench.bulk")
def bulk(seconds: float, payload: str) -> None:
    """Wait for something, as most tasks do."""
    time.sleep(seconds)


def fill(count: int, seconds: float, size_bytes: int) -> int:
    """Put bulk tasks into their queue."""
    payload = "x" * size_bytes
    receipts = bulk.apply_many([((seconds, payload), {})] * count, queue=BULK)
    receipts.raise_for_refused()
    return count


def call(count: int, per_second: float) -> int:
    """Make urgent calls, each at its time."""
    start = time.monotonic()
    with app.producer_pool.acquire(block=True) as producer:
        for number in range(count):
            time.sleep(max(0.0, start + number / per_second - time.monotonic()))
            urgent.apply_async((time.monotonic_ns(),), queue=URGENT, producer=producer)
    return count


if __name__ == "__main__":
    verb, *numbers = sys.argv[1:]
    if verb == "fill":
        done = fill(int(numbers[0]), float(numbers[1]), int(numbers[2]))
    else:
        done = call(int(numbers[0]), float(numbers[1]))
    print(json.dumps({"count": done}))
