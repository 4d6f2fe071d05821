"""SIGTERM in the middle of a backlog, in every pool: nothing unacked, lost or run twice."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.support.messages import ids_of
from tests.support.servers import Server
from tests.support.station import Station, station
from tests.support.wait import eventually
from tests.worker.conftest import POOLS

BACKLOG = 150


@pytest.fixture(params=POOLS)
def at(request: pytest.FixtureRequest, valkey: Server) -> Iterator[Station]:
    with station(valkey.fresh_url(), request.param) as running:
        yield running


def test_after_sigterm_in_a_backlog_nothing_is_unacked_lost_or_run_twice(at: Station) -> None:
    names = at.send_many("mark", BACKLOG, 0.03, queue="bulk")
    eventually(lambda: at.traces.total() >= 20, 30)
    assert at.worker.terminate() == 0

    ran = at.traces.counts()
    assert at.broker.holds_nothing(), at.broker.unacked_by_queue()
    assert set(ran.values()) == {1}
    waiting = at.broker.length("bulk")
    assert 0 < waiting < BACKLOG, "the signal came too late, or the worker lost its work"
    assert len(ran) + waiting == BACKLOG
    assert len(at.traces.counts("started")) == len(ran), "a task was started and not finished"

    at.worker.start()
    at.wait_until_ran(BACKLOG)
    at.wait_until_settled()
    assert at.traces.counts() == dict.fromkeys(names, 1)


def test_what_goes_back_at_shutdown_keeps_its_order(at: Station) -> None:
    ids = [
        at.send("held", f"t{n}", "gate", queue="bulk", task_id=f"t{n}", ignore_result=True).id
        for n in range(20)
    ]
    running = {at.traces.next_start()}
    if at.worker.slots > 1:
        running.add(at.traces.next_start())
    at.worker.send(signal.SIGTERM)
    at.worker.wait_log("Warm shutdown")
    at.traces.open("gate", times=len(running))
    assert at.worker.wait() == 0
    assert ids_of(at.broker.payloads("bulk")) == [i for i in ids if i not in running]
    assert at.broker.holds_nothing()
