"""``exchange``: what queues without work cost those with work, in the server's time.

An exchange settles what has ended and fetches of three queues with a backlog. A worker asks those,
and only looks at the bells of the others; once a second it asks all of them. The same is done with
three queues in the table and with more, in turns; the median turn counts, by the server's clock.
"""

from __future__ import annotations

import json
import sys
from itertools import count
from statistics import median
from typing import Any

import redis

from benchmarks.runner import Study, ratio
from benchmarks.server import Server
from routing import Topology
from routing.redis.commands import Commands
from routing.redis.keys import Keys
from routing.redis.values import Ending, Fetch, Settlement

COUNTS = (3, 20, 200)
BUSY = 3
ASKED = 8

#: A busy worker makes some hundred exchanges a second.
ALL_ASKED_EVERY = 200

TURNS = 5

#: As long as an ordinary task message.
TEXT = json.dumps({"body": "x" * 700, "headers": {"id": "an-id"}, "properties": {"priority": 0}})


def run(server: Server, size: int) -> dict[str, dict[str, Any]]:
    """Make ``size`` exchanges with each number of queues."""
    found: dict[int, list[float]] = {number: [] for number in COUNTS}
    for turn in range(TURNS):
        for number in COUNTS if turn % 2 == 0 else reversed(COUNTS):
            found[number].append(_server_us(server, number, size // TURNS))
    cases = {}
    for number, turns in found.items():
        case = {
            "server_us": round(median(turns), 1),
            "to_three": ratio(median(turns), median(found[BUSY])),
        }
        cases[f"queues_{number}"] = case
        print(f"exchange: queues_{number}: {case}", file=sys.stderr, flush=True)
    return cases


def _server_us(server: Server, number: int, exchanges: int) -> float:
    """Return the microseconds of the server that an exchange takes."""
    server.flush()
    queues = [f"q{n}" for n in range(number)]
    commands = Commands(keys=Keys(), topology=Topology.load({"queues": {q: {} for q in queues}}))
    with redis.Redis.from_url(server.broker_url) as client:
        for queue in queues[:BUSY]:
            for _ in range(0, exchanges * ASKED, 500):
                commands.push(client, queue, [TEXT] * 500)
        calls = count(1)
        settlement = Settlement([])
        before = _script_us(client)
        for done in range(exchanges):
            is_look = done % ALL_ASKED_EVERY == 0
            asked = queues if is_look else queues[:BUSY]
            quiet = () if is_look else tuple(queues[BUSY:])
            fetch = Fetch(
                f"w:{next(calls)}:", tuple((queue, ASKED) for queue in asked), quiet=quiet
            )
            arrivals = commands.exchange(client, settlement, fetch).arrivals
            settlement = Settlement([Ending(one.queue, "done", one.tag) for one in arrivals])
        return (_script_us(client) - before) / exchanges


def _script_us(client: redis.Redis) -> int:
    stats: Any = client.info("commandstats")
    return int(stats.get("cmdstat_evalsha", {}).get("usec", 0))


STUDY = Study(
    name="exchange",
    summary="an exchange with three busy queues: what further queues cost",
    size=5_000,
    run=run,
)
