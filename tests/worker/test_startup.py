"""What a worker says of its prefetch when it starts, and when it is asked."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.servers import Server
from tests.support.station import Station, station
from tests.support.wait import eventually

TABLE: dict[str, Any] = {
    "queues": {
        "default": {},
        "one": {"prefetch": 1},
        "meant": {"prefetch": 1, "limit": 1},
        "kept": {"prefetch": 3, "reserve": 1},
        "enough": {"prefetch": 3},
    },
}

OPEN: dict[str, Any] = {"queues": {"default": {}}}


def stats(at: Station) -> dict[str, Any]:
    """Return what the worker says to `inspect stats`, and so to Flower."""
    inspect = at.app.control.inspect(timeout=10, destination=[at.worker.name], limit=1)
    (answer,) = eventually(inspect.stats).values()
    found: dict[str, Any] = answer
    return found


def test_a_prefetch_below_the_slots_is_warned_of_at_start(valkey: Server) -> None:
    with station(valkey.fresh_url(), "threads", 4, settings={"table": TABLE}) as at:
        warnings = [line for line in at.worker.log.splitlines() if "prefetch is" in line]
        one, kept = sorted(warnings, key=lambda line: "'kept'" in line)
        assert "queue 'one': prefetch is 1, and the queue may have 3 slots of this worker" in one
        assert "2 of them never run anything of it" in one
        assert "say limit = 1 if that is meant" in one
        assert "queue 'kept': prefetch is 3, and the queue may have 4 slots" in kept
        assert "worker_prefetch_multiplier" not in at.worker.log


def test_a_prefetch_that_is_set_too_low_in_a_live_worker_says_so(valkey: Server) -> None:
    with station(valkey.fresh_url(), "threads", 4, settings={"table": TABLE}) as at:
        ask: dict[str, Any] = {"reply": True, "timeout": 10, "limit": 1}
        arguments = {"queue": "enough", "count": 2}
        (reply,) = at.app.control.broadcast("queue_prefetch", arguments=arguments, **ask)
        assert "prefetch is 2, and the queue may have 3 slots" in reply[at.worker.name]["ok"]


def test_a_multiplier_is_warned_of_once_and_inspect_shows_what_holds(valkey: Server) -> None:
    settings = {"table": TABLE, "worker_prefetch_multiplier": 1}
    with station(valkey.fresh_url(), "prefork", 2, settings=settings) as at:
        shown = stats(at)
        by_queue = {"default": 32, "one": 1, "meant": 1, "kept": 3, "enough": 3}
        assert (shown["prefetch_count"], shown["prefetch_by_queue"]) == (40, by_queue)
        connected = at.worker.log.count("] Connected to")
        valkey.kill_clients()
        eventually(lambda: at.worker.log.count("] Connected to") > connected)
        assert at.worker.log.count("worker_prefetch_multiplier is 1 and has no effect") == 1


def test_a_multiplier_of_the_command_line_is_warned_of_too(valkey: Server) -> None:
    arguments = ["--prefetch-multiplier", "7"]
    with station(valkey.fresh_url(), "solo", 1, arguments=arguments) as at:
        assert "worker_prefetch_multiplier is 7 and has no effect" in at.worker.log


@pytest.mark.parametrize("pool", ["threads", "gevent"])
def test_many_slots_all_run_with_the_default(valkey: Server, pool: str) -> None:
    with station(valkey.fresh_url(), pool, 60, settings={"table": OPEN}) as at:
        names = at.send_many("held", 70, "gate", queue="default")
        for _ in range(60):
            at.traces.next_start()
        at.traces.open("gate", times=70)
        at.wait_until_ran(len(names))


def test_slots_that_are_added_run_too(valkey: Server) -> None:
    with station(valkey.fresh_url(), "prefork", 1, settings={"table": TABLE}) as at:
        ask: dict[str, Any] = {"reply": True, "timeout": 10, "limit": 1}
        at.app.control.pool_grow(19, **ask)
        eventually(lambda: stats(at)["prefetch_by_queue"]["default"] == 40)
