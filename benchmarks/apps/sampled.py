"""One task that notes how old each message is when it starts, on queues of several lengths.

``python -m benchmarks.apps.sampled QUEUE BYTES COUNT SECONDS`` publishes as fast as it can, at most
so many messages for so long, and prints ``{"count": n, "seconds": s}``.
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

LENGTHS = (1, 10, 100, 1000)
POLICIES = ("drop_oldest", "block")
UNBOUNDED = "unbounded"

#: What the task takes: more than publishing takes the producer, so that the queue is always full.
SERVICE_SECONDS = 0.001

#: The default of the queue table; a worker never holds more than its queue may.
PREFETCH = 32

SAMPLE = struct.Struct("q")


def queue_name(policy: str, length: int) -> str:
    """Return the queue of one policy and length."""
    return f"{policy}-{length}"


settings = Settings.from_environment()
app = create_app("sampled", settings)
install(
    app,
    {
        "queues": {
            WARM_QUEUE: {},
            UNBOUNDED: {"prefetch": PREFETCH},
            **{
                queue_name(policy, length): {
                    "max_length": length,
                    "overflow": policy,
                    "prefetch": min(length, PREFETCH),
                    "log_drops": False,
                }
                for policy in POLICIES
                for length in LENGTHS
            },
        }
    },
)

_files: dict[int, BinaryIO] = {}


@app.task(name="bench.sample")
def sample(sent_ns: int, payload: str) -> None:
    """Note the message's age, and take as long as a small piece of work does."""
    age = time.monotonic_ns() - sent_ns
    pid = os.getpid()
    if pid not in _files:
        _files[pid] = (settings.directory / f"ages.{pid}").open("ab", buffering=0)
    _files[pid].write(SAMPLE.pack(age))
    time.sleep(SERVICE_SECONDS)


def publish(queue: str, size_bytes: int, count: int, seconds: float) -> dict[str, float]:
    """Publish; return how many messages it took, and when the first one was sent."""
    payload = "x" * size_bytes
    start = time.monotonic()
    sent = 0
    with app.producer_pool.acquire(block=True) as producer:
        while sent < count and time.monotonic() - start < seconds:
            sample.apply_async((time.monotonic_ns(), payload), queue=queue, producer=producer)
            sent += 1
    return {"count": sent, "began": start}


if __name__ == "__main__":
    queue_, size_, count_, seconds_ = sys.argv[1:]
    print(json.dumps(publish(queue_, int(size_), int(count_), float(seconds_))))
