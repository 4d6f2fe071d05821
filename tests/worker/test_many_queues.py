"""A worker of very many queues, which asks only those that may have something."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from celery import Celery

from tests.apps.basic import TABLE
from tests.support.servers import Server
from tests.support.station import Station, station
from tests.support.wait import eventually
from tests.worker.conftest import POOLS

QUEUES = 200
TABLE_OF_MANY = {"queues": {**TABLE["queues"], **{f"q{n}": {} for n in range(QUEUES)}}}


@contextmanager
def stock(at: Station) -> Iterator[Celery]:
    """A producer without the engine, whose messages ring no bell."""
    with Celery("stock", broker=at.app.conf.broker_url, set_as_current=False) as app:
        yield app


@pytest.mark.parametrize("pool", POOLS)
def test_what_rings_no_bell_is_found_in_any_of_them(pool: str, valkey: Server) -> None:
    settings = {"table": TABLE_OF_MANY}
    with station(valkey.fresh_url(), pool, settings=settings) as at, stock(at) as app:
        for number in (0, 77, 199):
            at.send("mark", f"ours {number}", queue=f"q{number}")
            assert at.traces.next_run() == f"ours {number}"
        eventually(at.broker.holds_nothing)
        for number in (0, 77, 199):
            app.send_task("basic.mark", (f"stock {number}",), queue=f"q{number}")
            assert not at.broker.client.exists(f"celeriac:bell:q{number}")
            assert at.traces.next_run() == f"stock {number}"
        at.send("mark", "later", queue="q150", countdown=1)
        assert at.traces.next_run() == "later"
