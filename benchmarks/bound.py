"""``bound``: what a bound costs a push, by itself and in ``delay``.

The same messages go into a queue without a bound and into queues with one that never hold as much,
in turns; the best turn of each counts, as anything else is the machine's other work. A push is one
script call, without Celery around it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import redis
from celery import Celery

from benchmarks.runner import Study
from benchmarks.server import Server
from routing import Topology, install
from routing.redis.commands import Commands
from routing.redis.keys import Keys

NO_BOUND = "no_bound"
QUEUES: Mapping[str, Any] = {
    NO_BOUND: {},
    "max_length": {"max_length": 10**9},
    "max_bytes": {"max_bytes": 10**12},
    "drop_oldest": {"max_length": 10**9, "overflow": "drop_oldest"},
}

#: Short and many: what else runs on the machine then hits all of them alike.
TURNS = 40

#: As long as an ordinary task message.
TEXT = json.dumps({"body": "x" * 700, "headers": {"id": "an-id"}, "properties": {"priority": 0}})


def run(server: Server, size: int) -> dict[str, dict[str, Any]]:
    """Push ``size`` messages into each queue, one by one and 500 at a time, and delay a tenth."""
    server.flush()
    app = Celery("bench-bound", broker=server.broker_url, set_as_current=False)
    install(app, {"queues": QUEUES})
    noop = app.task(name="bench.noop", ignore_result=True, shared=False)(_nothing)
    with redis.Redis.from_url(server.broker_url) as client, app.producer_pool.acquire() as producer:
        commands = Commands(keys=Keys(), topology=Topology.load({"queues": QUEUES}))
        ways: dict[str, tuple[Callable[[str], Any], int, int]] = {
            "push_1": (lambda queue: commands.push(client, queue, [TEXT]), size // TURNS, 1),
            "push_500": (
                lambda queue: commands.push(client, queue, [TEXT] * 500),
                size // TURNS // 500,
                500,
            ),
            "delay": (
                lambda queue: noop.apply_async((1,), queue=queue, producer=producer),
                size // TURNS // 10,
                1,
            ),
        }
        found = {}
        for way, (send, times, messages) in ways.items():
            best = _best_of_turns(server, send, max(times, 1))
            for queue, seconds in best.items():
                case = _figures(seconds / messages, best[NO_BOUND] / messages)
                found[f"{way}_{queue}"] = case
                print(f"bound: {way} {queue}: {case}", file=sys.stderr, flush=True)
    return found


def _best_of_turns(server: Server, send: Callable[[str], Any], times: int) -> dict[str, float]:
    """Return the seconds of one call for each queue."""
    best = dict.fromkeys(QUEUES, float("inf"))
    for turn in range(TURNS):
        server.flush()
        order = sorted(QUEUES, reverse=bool(turn % 2))
        for queue in order:
            send(queue)
            begin = time.perf_counter()
            for _ in range(times):
                send(queue)
            best[queue] = min(best[queue], (time.perf_counter() - begin) / times)
    return best


def _figures(seconds: float, without: float) -> dict[str, Any]:
    return {
        "microseconds": round(seconds * 1e6, 2),
        "over_no_bound_percent": round(100 * (seconds / without - 1), 1),
    }


def _nothing(number: int) -> None: ...


STUDY = Study(
    name="bound",
    summary="what a bound costs a push: by itself, 500 at a time, and in delay",
    size=40_000,
    run=run,
    in_all=True,
)
