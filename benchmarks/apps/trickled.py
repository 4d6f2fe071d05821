"""A batch task that notes how long each item waited, the same as a plain task, and a publisher.

A call takes the same time however many items it has, as a call of a remote service does. So what a
worker gets done depends on how full its batches are.

``python -m benchmarks.apps.trickled RATE SECONDS`` publishes so many items a second for so long,
``... RATE SECONDS single`` calls of the plain task; ``... burst COUNT`` publishes so many items at
once, ``... keys COUNT`` items of a thousand keys in turn. All print ``{"count": n}``.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import time
from collections.abc import Sequence
from typing import Any

from batching import Batch, BatchTask
from benchmarks.apps.settings import Settings, create_app
from routing import install

QUEUE, SINGLE_QUEUE = "trickle", "single"

MAX_SIZE = 100
MAX_WAIT_SECONDS = 0.03
CALL_SECONDS = 0.3

#: Items of many keys come in turn, and calls of one key are short.
KEYED_QUEUE = "keys"
KEYS = 1_000
KEYED_CALL_SECONDS = 0.02

#: The publisher sends what is due that often.
TICK_SECONDS = 0.005

#: Of a call: when it began and how long it took. Its items' waits follow, all in nanoseconds.
CALL = struct.Struct("=qqi")

settings = Settings.from_environment()
app = create_app("trickled", settings)
# With its defaults: a queue of batches holds what they need.
install(
    app,
    {
        "queues": {QUEUE: {}, SINGLE_QUEUE: {}, KEYED_QUEUE: {"prefetch": 5 * KEYS}},
        "routes": {"bench.gather_keyed": KEYED_QUEUE, "bench.single": SINGLE_QUEUE},
    },
)


@app.task(
    name="bench.gather",
    base=BatchTask,
    max_size=MAX_SIZE,
    max_wait=MAX_WAIT_SECONDS,
    ignore_result=True,
)
def gather(batch: Batch[int]) -> None:
    """Take as long as any call, and note it."""
    _note(batch.values, CALL_SECONDS)


@app.task(name="bench.single", ignore_result=True)
def single(sent: int) -> None:
    """Take as long as any call, and note it."""
    _note([sent], CALL_SECONDS)


@app.task(
    name="bench.gather_keyed",
    base=BatchTask,
    max_size=MAX_SIZE,
    max_wait=MAX_WAIT_SECONDS,
    key=lambda sent, key: key,
    ignore_result=True,
)
def gather_keyed(batch: Batch[tuple[Any, Any]]) -> None:
    """Take as long as any call of one key, and note it."""
    _note([item.args[0] for item in batch], KEYED_CALL_SECONDS)


def _note(sent: Sequence[int], seconds: float) -> None:
    began = time.monotonic_ns()
    waits = [began - at for at in sent]
    time.sleep(seconds)
    took = time.monotonic_ns() - began
    text = CALL.pack(began, took, len(waits)) + struct.pack(f"={len(waits)}q", *waits)
    # One write for a call: threads share the file.
    with (settings.directory / f"calls.{os.getpid()}").open("ab", buffering=0) as file:
        file.write(text)


def trickle(rate: float, seconds: float, task: Any = gather) -> int:
    """Publish steadily, whatever becomes of it."""
    began = time.monotonic()
    sent, total = 0, int(rate * seconds)
    while sent < total:
        due = min(total, int((time.monotonic() - began) * rate)) - sent
        if due:
            task.delay_many([time.monotonic_ns()] * due).raise_for_refused()
            sent += due
        time.sleep(TICK_SECONDS)
    return sent


def burst(count: int) -> int:
    """Publish everything at once."""
    gather.delay_many([time.monotonic_ns()] * count).raise_for_refused()
    return count


def keys(count: int) -> int:
    """Publish items of all keys at once, in turn."""
    now = time.monotonic_ns()
    gather_keyed.apply_many([((now, n % KEYS), {}) for n in range(count)]).raise_for_refused()
    return count


if __name__ == "__main__":
    first, second, *task = sys.argv[1:]
    at_once = {"burst": burst, "keys": keys}.get(first)
    if at_once:
        count = at_once(int(second))
    else:
        count = trickle(float(first), float(second), single if task else gather)
    print(json.dumps({"count": count}))
