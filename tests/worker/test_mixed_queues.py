"""Plain tasks and batches in one queue, as they are where nothing routes a batch task."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.apps.basic import TABLE
from tests.support.servers import Server
from tests.support.station import Station, station
from tests.support.wait import eventually, throughout
from tests.worker.conftest import POOLS


@contextmanager
def mixed(
    valkey: Server, pool: str, slots: int, limits: Any = None, **bulk: Any
) -> Iterator[Station]:
    """A worker to whose queue "bulk" a batch task goes, too."""
    table = {
        **TABLE,
        "queues": {
            **TABLE["queues"],
            "high": {"weight": 8},
            "bulk": {"prefetch": 60, **bulk},
        },
        "routes": {**TABLE["routes"], "basic.held": "bulk", "refusals.item": "bulk"},
        "limits": limits or {},
    }
    settings = {"table": table}
    with station(
        valkey.fresh_url(), pool, slots, settings=settings, app_module="tests.apps.refusals"
    ) as at:
        yield at


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent"])
@pytest.mark.parametrize(
    "limited",
    [{"concurrency": 1}, {"limits": {"basic.held": {"concurrency": 1}}}],
    ids=["queue", "task"],
)
def test_each_plain_task_takes_a_slot_of_a_limit(
    valkey: Server, pool: str, limited: dict[str, Any]
) -> None:
    with mixed(valkey, pool, 4, **limited) as at:
        names = at.send_many("held", 6, "gate", queue="bulk")
        for ran in range(6):
            assert at.traces.next_start() in names
            throughout(lambda ran=ran: at.traces.total("started") == ran + 1, 0.1)
            at.traces.open("gate")
        at.wait_until_ran(6)
        at.wait_until_settled()


@pytest.mark.parametrize(
    "limited", [{"rate": "20/s"}, {"limits": {"basic.mark": {"rate": "20/s"}}}]
)
def test_each_plain_task_is_a_start_of_a_rate(valkey: Server, limited: dict[str, Any]) -> None:
    with mixed(valkey, "threads", 4, **limited) as at:
        at.send_many("mark", 40, queue="bulk")
        at.wait_until_ran(3)
        throughout(lambda: at.traces.total() <= 20, 0.5)
        at.wait_until_ran(40)
        at.wait_until_settled()


@pytest.mark.parametrize("pool", POOLS)
def test_workers_without_a_free_slot_leave_plain_work_to_others(valkey: Server, pool: str) -> None:
    with mixed(valkey, pool, 2) as at:
        with at.worker.twin() as twin:
            slots = at.worker.slots + twin.slots
            at.send_many("held", slots, "gate", queue="bulk")
            for _ in range(slots):
                at.traces.next_start()
            at.send_many("held", 20, "gate", queue="bulk")
            eventually(lambda: at.broker.length("bulk") == 20)
            throughout(lambda: at.broker.unacked("bulk") == slots, 0.3)
            with at.worker.twin() as third:
                for _ in range(third.slots):
                    at.traces.next_start()
                at.traces.open("gate", times=slots + 20)
                at.wait_until_ran(slots + 20)
                at.wait_until_settled()
        given_back = at.broker.ledger("bulk").get("given_back", 0)
        assert given_back <= slots, f"{given_back} were passed to and fro"


@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_an_urgent_call_waits_for_one_task_of_a_worker_with_one_slot(
    valkey: Server, pool: str
) -> None:
    with mixed(valkey, pool, 1) as at:
        names = at.send_many("mark", 12, 0.1, queue="bulk")
        at.wait_until_ran(2)
        for _ in range(3):
            begun = at.traces.total("started")
            (urgent,) = at.send_many("mark", 1, queue="high")
            at.wait_until_ended(urgent)
            before = at.traces.client.lpos("runs", urgent)
            assert before <= begun + 1, "it stood behind tasks that had not begun"
        at.wait_until_ran(len(names) + 3)
        at.wait_until_settled()
