"""`control rate_limit` holds for what waits, too, in every pool; for items see test_batch_life."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.servers import Server
from tests.support.station import Station, station
from tests.support.wait import eventually, throughout
from tests.worker.conftest import POOLS


@pytest.fixture(params=POOLS)
def at(request: pytest.FixtureRequest, valkey: Server) -> Iterator[Station]:
    with station(valkey.fresh_url(), request.param, 1) as at:
        yield at


def set_rate(app: Any, task: str, rate: str) -> None:
    """Change a task's rate limit in the worker."""
    ask = {"reply": True, "timeout": 2, "limit": 1}  # it is ready before it listens
    (reply,) = eventually(lambda: app.control.rate_limit(task, rate, **ask))
    assert all("ok" in answer for answer in reply.values()), reply


@pytest.mark.parametrize("rate", ["0", "50/s"])
def test_what_waits_at_an_old_rate_goes_on_at_the_new_one(at: Station, rate: str) -> None:
    names = at.send_many("limited", 12)
    at.wait_until_ran(1)
    throughout(lambda: at.traces.total() == 1, 0.3)
    set_rate(at.app, "basic.limited", rate)
    at.wait_until_ran(len(names), timeout=10)
    at.wait_until_settled()
    assert at.traces.counts() == dict.fromkeys(names, 1)


def test_what_waits_is_slowed_down_and_a_change_is_no_start_for_free(at: Station) -> None:
    at.send_many("limited", 30)
    at.wait_until_ran(1)
    for rate in ("2/h", "1/h", "3/h"):
        set_rate(at.app, "basic.limited", rate)
    throughout(lambda: at.traces.total() == 1, 0.3)
    set_rate(at.app, "basic.limited", "8/s")
    at.wait_until_ran(4)
    set_rate(at.app, "basic.limited", "1/h")
    total = at.traces.total()
    assert total < 30
    throughout(lambda: at.traces.total() <= total + 1, 0.5)


def test_a_limit_of_another_task_leaves_a_rate_alone(at: Station) -> None:
    at.send_many("limited", 4)
    at.wait_until_ran(1)
    for rate in ("1/s", "0", "5/m"):
        set_rate(at.app, "basic.mark", rate)
    throughout(lambda: at.traces.total() == 1, 0.3)
    set_rate(at.app, "basic.limited", "0")
    at.wait_until_ran(4)


@pytest.mark.parametrize("at", ["prefork", "threads", "gevent"], indirect=True)
def test_a_first_limit_holds_for_what_waits_for_a_slot(at: Station) -> None:
    eventually(lambda: two_wait_for_the_slot(at), 60)
    total = at.traces.total()
    set_rate(at.app, "basic.mark", "1/h")
    at.traces.open("gate")
    at.wait_until_ran(total + 2)
    throughout(lambda: at.traces.total() == total + 2, 0.5)
    set_rate(at.app, "basic.mark", "0")
    at.wait_until_ran(total + 3)


def two_wait_for_the_slot(at: Station) -> bool:
    """Let a task hold the only slot, and two wait for it here: fetched with it, if that short."""
    total = at.traces.total()
    at.send_many("mark", 20)
    at.wait_until_ran(total + 20)  # so short, unless the machine is so busy
    at.stop_consuming("default")
    (holder,) = at.send_many("held", 1, "gate", queue="default")
    at.send_many("mark", 2)
    at.consume("default")
    eventually(lambda: holder in at.traces.counts("started"))
    if at.broker.unacked() == 3:
        return True
    at.traces.open("gate")
    at.wait_until_ran(total + 23)
    return False
