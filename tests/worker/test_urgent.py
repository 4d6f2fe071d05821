"""Urgent work starts beside bulk work at once, whatever has just ended and whatever waits."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator
from functools import partial

import pytest

from tests.apps.basic import TABLE, Traces, close
from tests.apps.refusals import TABLE as BATCHES
from tests.apps.refusals import create
from tests.support.servers import Server
from tests.support.station import Station, station
from tests.support.wait import eventually
from tests.support.worker import Worker

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


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent"])
def test_urgent_work_starts_beside_batches_at_once(valkey: Server, pool: str) -> None:
    queues = {"default": {"reserve": 1}, "bulk": {}, "items": {"prefetch": 20}}
    table = {**BATCHES, "queues": queues, "default_queue": "default"}
    url = valkey.fresh_url()
    app, traces = create(url, table=table), Traces(url)
    env = {
        "CELERIAC_TEST_BROKER": url,
        "CELERIAC_TEST_SETTINGS": json.dumps({"table": table}),
    }
    with Worker("tests.apps.refusals", pool, env=env):
        for n in range(200):  # more than the worker holds, in batches of ten
            value = {"name": f"item-{n}", "how": "succeed", "seconds": BULK_SECONDS}
            app.tasks["refusals.item"].apply_async((value,), ignore_result=True)
        traces.next_run()
        waited = []
        for n in range(12):
            sent, name = time.monotonic(), f"urgent-{n}"
            app.tasks["refusals.attempt"].apply_async((name, "succeed", 0), queue="default")
            ran = partial(traces.client.hexists, "ran", name)
            eventually(ran, poll_seconds=0.005)  # a look more often than that is in the figure
            waited.append(time.monotonic() - sent)
        assert traces.total() < 212, "there was nothing to wait for"
        assert statistics.median(waited) < BULK_SECONDS / 4
        assert sorted(waited)[-2] < BULK_SECONDS / 2
    traces.client.close()
    close(app)


def test_an_urgent_call_wakes_a_worker_with_a_backlog_at_the_broker(at: Station) -> None:
    at.send_many("mark", 400, 0.05, queue="bulk")
    at.traces.next_start()
    waited = [start_seconds(at, f"urgent-{number}") for number in range(20)]
    assert at.broker.length("bulk") or at.broker.unacked("bulk")
    # The wait for a bell, which a missed wake-up would fall back on, takes a second.
    assert statistics.median(waited) < 0.25
