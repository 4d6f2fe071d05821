"""One task on queues that the runner chooses (`benchmarks.apps.plan`); each run of it is noted.

``python -m benchmarks.apps.queued fill JSON`` puts messages into a queue, ``call JSON`` makes
calls, each at its time; JSON holds the keyword arguments of the function of that name.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import sys
import time
from typing import Any, BinaryIO

from celery import Celery
from kombu.entity import Queue

from benchmarks.apps.plan import Plan
from benchmarks.apps.runs import WARM_NUMBER, Run, Sent, path_of
from benchmarks.apps.settings import Settings, create_app
from routing import install

SEED = 7

settings = Settings.from_environment()
plan = Plan.read(settings.directory)
_files: dict[tuple[str, int], BinaryIO] = {}


def work(
    queue: str, number: int, sent_ns: int, seconds: float, computes: bool, payload: str
) -> None:
    """Sleep or compute for so long, and note it."""
    began_ns = time.monotonic_ns()
    if computes:
        _compute(seconds)
    elif seconds:
        time.sleep(seconds)
    ended_ns = time.monotonic_ns()
    run = Run(number=number, sent_ns=sent_ns, began_ns=began_ns, ended_ns=ended_ns)
    key = queue, os.getpid()
    if key not in _files:
        _files[key] = path_of(settings.directory, *key).open("ab", buffering=0)
    _files[key].write(run.pack())


def _compute(seconds: float) -> None:
    """Use so much time of a core, however long that takes."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        sum(range(1_000))


def build(plan: Plan) -> Celery:
    """Return the app of a plan."""
    built = create_app(f"queued-{plan.side}", settings)
    if plan.side == "ours":
        install(built, {"queues": plan.queues})
    else:
        built.conf.update(
            task_queues=[Queue(name) for name in plan.queues],
            worker_prefetch_multiplier=plan.multiplier,
            task_acks_late=True,
        )
    built.task(name="bench.work", shared=False)(work)
    return built


app = build(plan)


def fill(*, queue: str, count: int, seconds: float, size_bytes: int, computes: bool) -> int:
    """Put messages into a queue, the same ones on both sides."""
    filler = build(dataclasses.replace(plan, side="ours")).tasks["bench.work"]
    now, payload = time.monotonic_ns(), "x" * size_bytes
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((queue, number, now, seconds, computes, payload), {}) for number in range(count)
    ]
    filler.apply_many(calls, queue=queue).raise_for_refused()
    return count


def call(*, queue: str, count: int, per_second: float, warm: int, seconds: float) -> list[Sent]:
    """Make calls, each at its time; ``warm`` ones come before and are noted as such.

    Returns when each was made.

    The pace is not even, so that it keeps no step with the tasks that run meanwhile.
    """
    chance = random.Random(SEED)
    at = time.monotonic()
    sent = []
    with app.producer_pool.acquire(block=True) as producer:
        for number in (*[WARM_NUMBER] * warm, *range(count)):
            time.sleep(max(0.0, at - time.monotonic()))
            at += chance.uniform(0.5, 1.5) / per_second
            called_ns = time.monotonic_ns()
            arguments = (queue, number, called_ns, seconds, False, "")
            made = app.tasks["bench.work"].apply_async(arguments, queue=queue, producer=producer)
            sent.append(Sent(called_ns, time.monotonic_ns(), made.id))
    return sent[warm:]


VERBS: dict[str, Any] = {"fill": fill, "call": call}

if __name__ == "__main__":
    verb, arguments = sys.argv[1:]
    print(json.dumps({"made": VERBS[verb](**json.loads(arguments))}))
