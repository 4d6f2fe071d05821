"""Prefetch is per queue: a blocked queue holds exactly its own, and no other queue waits for it."""

from __future__ import annotations

from collections.abc import Iterator

import psutil  # type: ignore[import-untyped]
import pytest

from tests.apps.basic import TABLE
from tests.support.servers import Server
from tests.support.station import Station, station
from tests.support.wait import eventually, throughout

PREFETCH = TABLE["queues"]["slow"]["prefetch"]
FAST = 250


@pytest.fixture
def at(request: pytest.FixtureRequest, valkey: Server) -> Iterator[Station]:
    pool, concurrency = request.param
    with station(valkey.fresh_url(), pool, concurrency) as running:
        yield running


def observe(at: Station, *, until: int) -> set[int]:
    """Return every number of unacked messages of the slow queue that was seen meanwhile."""
    seen: set[int] = set()

    def look() -> bool:
        seen.add(at.broker.unacked("slow"))
        return at.traces.total() >= until

    eventually(look, 30, poll_seconds=0.002)
    return seen


@pytest.mark.parametrize(
    "at",
    [("prefork", PREFETCH + 1), ("threads", PREFETCH + 1), ("gevent", PREFETCH + 1)],
    indirect=True,
    ids=str,
)
def test_a_blocked_queue_holds_its_prefetch_and_another_goes_on(at: Station) -> None:
    blocked = at.send_many("held", 20, "gate", queue="slow")
    for _ in range(PREFETCH):
        at.traces.next_start()
    eventually(lambda: at.broker.unacked("slow") == PREFETCH)
    at.send_many("mark", FAST, queue="fast")
    assert observe(at, until=FAST) == {PREFETCH}
    assert at.broker.length("slow") == 20 - PREFETCH
    assert at.broker.calls_per_second(seconds=4) < 5, "a blocked queue keeps the worker busy"
    assert psutil.Process(at.worker.pid).cpu_percent(interval=1) < 40

    at.traces.open("gate", times=20)
    at.wait_until_ran(FAST + 20)
    at.wait_until_settled()
    assert at.traces.counts().items() >= dict.fromkeys(blocked, 1).items()


@pytest.mark.parametrize("at", [("prefork", PREFETCH + 1), ("threads", 4)], indirect=True, ids=str)
def test_prefetch_is_never_exceeded_while_a_queue_is_worked_off(at: Station) -> None:
    at.send_many("mark", 200, 0.005, queue="slow")
    assert max(observe(at, until=200)) == PREFETCH


@pytest.mark.parametrize(
    "at", [("solo", 1), ("prefork", 2), ("threads", 2), ("gevent", 2)], indirect=True, ids=str
)
def test_a_rate_limited_task_holds_its_queues_prefetch_and_another_goes_on(at: Station) -> None:
    at.send_many("limited", 20, queue="slow")
    at.wait_until_ran(1)
    # Not by what is unacknowledged: that is as much before the first one is settled.
    eventually(lambda: at.broker.length("slow") == 20 - 1 - PREFETCH)
    at.send_many("mark", FAST, queue="fast")
    assert observe(at, until=FAST) == {PREFETCH}
    assert at.broker.length("slow") == 20 - 1 - PREFETCH

    assert at.worker.terminate() == 0
    assert at.broker.holds_nothing(), "a warm shutdown requeues what a rate limit kept waiting"
    assert at.broker.length("slow") == 20 - 1


@pytest.mark.parametrize("at", [("prefork", 2)], indirect=True, ids=str)
def test_work_that_waits_for_its_eta_takes_no_credit(at: Station) -> None:
    at.send_many("mark", 3 * PREFETCH, queue="slow", countdown=3600)
    at.send_many("mark", 20, queue="slow")
    at.wait_until_ran(20)
    assert at.worker.terminate() == 0
    assert at.broker.holds_nothing()
    assert len(at.broker.delayed("slow")) == 3 * PREFETCH


@pytest.mark.parametrize("at", [("prefork", 8)], indirect=True, ids=str)
def test_remote_control_changes_a_prefetch(at: Station) -> None:
    at.send_many("held", 30, "gate", queue="slow")
    eventually(lambda: at.broker.unacked("slow") == PREFETCH)
    at.app.control.broadcast(
        "queue_prefetch",
        arguments={"queue": "slow", "count": 7},
        destination=[at.worker.name],
        reply=True,
        timeout=5,
    )
    at.traces.open("gate", times=2)
    eventually(lambda: at.broker.unacked("slow") == 7)
    at.traces.open("gate", times=28)
    at.wait_until_settled(timeout=20)


@pytest.mark.parametrize("pool", ["prefork", "gevent"])
def test_a_worker_stops_fetching_at_its_bytes(valkey: Server, pool: str) -> None:
    table = {**TABLE, "max_inflight_bytes": 1_000_000}
    with station(valkey.fresh_url(), pool, 4, settings={"table": table}) as at:
        headers = {"padding": "x" * 300_000}
        names = at.send_many("held", 12, "gate", queue="bulk", headers=headers)
        # Seven queues: each has a fourteenth to itself, and the last one may exceed the bound.
        eventually(lambda: at.broker.unacked("bulk") == 2)
        throughout(lambda: at.broker.unacked("bulk") == 2, 0.5)
        at.traces.open("gate", times=12)
        at.wait_until_ran(12)
        at.wait_until_settled()
        assert at.traces.counts() == dict.fromkeys(names, 1)


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent"])
@pytest.mark.parametrize("first", ["bulk", "fast"])
def test_large_messages_of_one_queue_keep_no_other_from_being_fetched(
    valkey: Server, pool: str, first: str
) -> None:
    queues = dict(sorted(TABLE["queues"].items(), key=lambda entry: entry[0] != first))
    queues["bulk"] = {"prefetch": 200, "limit": 2}
    table = {**TABLE, "queues": queues, "default_queue": "default", "max_inflight_bytes": 1_000_000}
    with station(valkey.fresh_url(), pool, 3, settings={"table": table}) as at:
        headers = {"padding": "x" * 300_000}
        at.send_many("held", 6, "gate", queue="bulk", headers=headers)
        eventually(lambda: at.broker.unacked("bulk") >= 2)
        # Nothing of bulk can end before these have.
        names = at.send_many("mark", 20, queue="fast", headers=headers)
        at.wait_until_ran(20)
        assert not at.traces.counts().keys() - set(names)
        at.traces.open("gate", times=6)
        at.wait_until_settled()
