"""Urgent work starts beside bulk work at once, whatever has just ended and whatever waits."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

import pytest

from tests.apps.basic import TABLE
from tests.support.servers import Server
from tests.support.station import Station, station

BULK_SECONDS = 0.4
QUEUES = {**TABLE["queues"], "high": {"reserve": 1, "prefetch": 8}}


@pytest.fixture(params=["prefork", "threads", "gevent"])
def at(request: pytest.FixtureRequest, valkey: Server) -> Iterator[Station]:
    table = {**TABLE, "queues": QUEUES}
    with station(valkey.fresh_url(), request.param, 2, settings={"table": table}) as running:
        yield running


def start_seconds(at: Station, name: str) -> float:
    """Return how long an urgent call waited for its start."""
    sent = time.monotonic()
    at.send("mark", name, queue="high")
    while at.traces.next_start() != name:
        continue
    return time.monotonic() - sent


def test_a_reserved_slot_is_free_again_after_each_urgent_task(at: Station) -> None:
    bulk = at.send_many("mark", 30, BULK_SECONDS, queue="bulk")
    at.traces.next_start()
    waited = []
    for number in range(12):
        waited.append(start_seconds(at, f"urgent-{number}"))
        at.wait_until_ended(f"urgent-{number}")
    assert at.traces.counts().keys() - {f"urgent-{n}" for n in range(12)} < set(bulk)
    # A slot that was lent to bulk work would come back half a task later, as often as not.
    assert statistics.median(waited) < BULK_SECONDS / 4
    assert sorted(waited)[-2] < BULK_SECONDS / 2


def test_an_urgent_call_wakes_a_worker_with_a_backlog_at_the_broker(at: Station) -> None:
    at.send_many("mark", 400, 0.05, queue="bulk")
    at.traces.next_start()
    waited = [start_seconds(at, f"urgent-{number}") for number in range(20)]
    assert at.broker.length("bulk") or at.broker.unacked("bulk")
    # The wait for a bell, which a missed wake-up would fall back on, takes a second.
    assert statistics.median(waited) < 0.25
