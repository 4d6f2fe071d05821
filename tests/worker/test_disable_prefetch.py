"""``--disable-prefetch``: a worker holds what its slots run, and an idle one finds the rest."""

from __future__ import annotations

import pytest

from tests.apps.basic import TABLE, close
from tests.apps.refusals import create
from tests.support.broker import Broker
from tests.support.servers import Server
from tests.support.station import station
from tests.support.wait import eventually, throughout
from tests.support.worker import Worker

QUEUES = {**TABLE["queues"], "high": {"reserve": 1, "prefetch": 8}}


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent", "solo"])
def test_a_worker_holds_no_more_than_it_runs(valkey: Server, pool: str) -> None:
    with station(valkey.fresh_url(), pool, 2, arguments=["--disable-prefetch"]) as at:
        slots = at.worker.slots
        names = at.send_many("held", 12, "gate", queue="bulk")
        for _ in range(slots):
            at.traces.next_start()
        throughout(lambda: at.broker.unacked("bulk") == slots, 0.5)
        with at.worker.twin():
            for _ in range(slots):
                at.traces.next_start()
            eventually(lambda: at.broker.unacked("bulk") == 2 * slots)
            # After an ending, and after the tenth, as before any.
            for ended in range(1, 11 - 2 * slots):
                at.traces.open("gate", times=1)
                at.traces.next_start()
                at.wait_until_ran(ended)
                eventually(lambda: at.broker.unacked("bulk") == 2 * slots)
            at.traces.open("gate", times=20)
            at.wait_until_ran(12)
            at.wait_until_settled()
        assert at.traces.counts() == dict.fromkeys(names, 1)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_worker_holds_no_more_batches_than_it_runs(valkey: Server, pool: str) -> None:
    url = valkey.fresh_url()
    app, env = create(url), {"CELERIAC_TEST_BROKER": url}
    held: set[int] = set()
    for n in range(80):  # in batches of ten, two at a time
        value = {"name": f"item-{n}", "how": "succeed", "seconds": 0.2}
        app.tasks["refusals.item"].apply_async((value,), ignore_result=True)
    options = ["--disable-prefetch"]
    worker = Worker("tests.apps.refusals", pool, env=env, options=options)
    with worker, Broker(url) as broker:
        while broker.length("items"):
            held.add(broker.unacked("items"))
        eventually(broker.holds_nothing, message=lambda: worker.log[-5000:])
    assert 10 <= max(held) <= 20
    close(app)


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent"])
def test_what_acknowledges_early_takes_its_slot_all_the_same(valkey: Server, pool: str) -> None:
    with station(valkey.fresh_url(), pool, 2, arguments=["--disable-prefetch"]) as at:
        at.send_many("early", 2, "gate", queue="bulk")
        for _ in range(2):
            at.traces.next_start()
        at.send_many("early", 2, "gate", queue="bulk")
        throughout(lambda: at.broker.unacked("bulk") == 0, 0.5)
        assert at.broker.length("bulk") == 2
        at.traces.open("gate", times=4)
        at.wait_until_ran(4)
        at.wait_until_settled()


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_reserved_slot_is_fetched_for_by_its_own_queue_only(valkey: Server, pool: str) -> None:
    settings = {"table": {**TABLE, "queues": QUEUES}}
    arguments = ["--disable-prefetch"]
    with station(valkey.fresh_url(), pool, 2, settings=settings, arguments=arguments) as at:
        at.send_many("held", 6, "gate", queue="bulk")
        at.traces.next_start()
        throughout(lambda: at.broker.unacked("bulk") == 1, 0.5)
        names = at.send_many("mark", 10, queue="high")
        at.wait_until_ran(10)
        assert at.traces.counts() == dict.fromkeys(names, 1)
        at.traces.open("gate", times=6)
        at.wait_until_ran(16)
        at.wait_until_settled()


def test_an_autoscaled_pool_grows_for_what_waits(valkey: Server) -> None:
    arguments = ["--disable-prefetch", "--autoscale", "3,1"]
    with station(valkey.fresh_url(), "prefork", 1, arguments=arguments) as at:
        at.send_many("held", 6, "gate", queue="bulk")
        for _ in range(3):
            at.traces.next_start(seconds=20)
        throughout(lambda: at.broker.unacked("bulk") == 3, 0.5)
        at.traces.open("gate", times=6)
        at.wait_until_ran(6)
        at.wait_until_settled()
