"""Publish messages in a process of its own, and say how long it took.

``python -m benchmarks.apps.produce SIDE MODE TASK COUNT [QUEUE]`` prints ``{"count": n,
"seconds": s}``. Modes:

- ``delay``: ``task.delay(number)`` in a loop, timed after a short warm-up.
- ``delay_many``: one call for all messages, timed likewise (ours only).
- ``fill``: put ``COUNT`` messages into ``QUEUE`` before a drain. Ours sends them with
  ``delay_many``; stock's queue is filled with copies of one message sent by ``apply_async``,
  under fresh ids: a worker cannot tell them from messages that were sent one by one, and 20,000
  of those would take ten seconds a round.
"""

from __future__ import annotations

import importlib
import json
import sys
from time import perf_counter
from typing import Any
from uuid import uuid4

import redis

from benchmarks.apps.settings import BENCH_QUEUE, Settings

WARM_CALLS = 50
CHUNK = 500


def main(side: str, mode: str, task_name: str, count: int, queue: str) -> dict[str, float]:
    """Publish ``count`` messages and return how many seconds the publishing alone took."""
    task = importlib.import_module(f"benchmarks.apps.{side}").app.tasks[task_name]
    if mode == "fill":
        return fill(side, task, queue, count)
    publish = {"delay": delay, "delay_many": delay_many}[mode]
    publish(task, WARM_CALLS)
    start = perf_counter()
    publish(task, count)
    return {"count": count, "seconds": perf_counter() - start}


def delay(task: Any, count: int) -> None:
    """Publish one by one."""
    for number in range(count):
        task.delay(number)


def delay_many(task: Any, count: int, **options: Any) -> None:
    """Publish with one call."""
    receipts = task.delay_many(range(count), **options)
    accepted = sum(receipt.accepted for receipt in receipts)
    if accepted != count:
        raise RuntimeError(f"delay_many: expected {count} accepted messages, got {accepted}")


def fill(side: str, task: Any, queue: str, count: int) -> dict[str, float]:
    """Put ``count`` messages into a queue, by the quickest way that this side has."""
    start = perf_counter()
    if side == "ours":
        delay_many(task, count, queue=queue)
    else:
        clone(task, queue, count)
    return {"count": count, "seconds": perf_counter() - start}


def clone(task: Any, queue: str, count: int) -> None:
    """Send one message and copy it ``count`` times under fresh ids."""
    first_id = task.apply_async((0,), queue=queue).id
    client = redis.Redis.from_url(Settings.from_environment().broker)
    text = client.rpop(queue)
    if not isinstance(text, bytes):
        raise RuntimeError(f"queue {queue!r}: expected the message just sent, got {text!r}")
    template = text.decode()
    tag = json.loads(template)["properties"]["delivery_tag"]
    for begin in range(0, count, CHUNK):
        copies = [copy(template, first_id, tag) for _ in range(min(CHUNK, count - begin))]
        client.lpush(queue, *copies)
    client.close()


def copy(template: str, task_id: str, tag: str) -> str:
    """Return the message text with an id and a delivery tag of its own."""
    return template.replace(task_id, str(uuid4())).replace(tag, str(uuid4()))


if __name__ == "__main__":
    side_, mode_, task_, count_, *queue_ = sys.argv[1:]
    print(json.dumps(main(side_, mode_, task_, int(count_), (queue_ or [BENCH_QUEUE])[0])))
