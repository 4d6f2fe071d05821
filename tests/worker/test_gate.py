"""Limits that all workers share: never more at once, nothing stuck, and no slot held for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from routing.redis.keys import Keys
from routing.settings import set_queue
from routing.topology.model import Topology
from routing.worker.startup import warn_of_early_acks
from tests.apps.basic import TABLE, close, create
from tests.support.servers import Server
from tests.support.station import Station, station
from tests.support.wait import elapse, eventually, throughout
from tests.worker.conftest import POOLS
from tests.worker.test_batch_life import Scene

LEASE_SECONDS = 3.0
KEYS = Keys()


def settings(limits: Any = None, **queues: Any) -> dict[str, Any]:
    table = {**TABLE, "queues": {**TABLE["queues"], **queues}, "lease_seconds": LEASE_SECONDS}
    return {"table": {**table, "limits": limits or {}}}


def now_ms(at: Station) -> int:
    seconds, micros = at.broker.client.time()
    return int(seconds) * 1000 + int(micros) // 1000


def brpops(at: Station) -> int:
    return int(at.broker.client.info("commandstats")["cmdstat_brpop"]["calls"])


class Watch:
    """Looks all the time at how many slots of a gate are held."""

    def __init__(self, at: Station | Scene, gate: str) -> None:
        self._client, self._key, self.most = at.broker.client, KEYS.gate(gate), 0
        self._over = threading.Event()

    def held(self) -> int:
        held = int(self._client.hlen(self._key))
        self.most = max(self.most, held)
        return held

    def _look(self) -> None:
        while not self._over.wait(0.002):
            self.held()

    @contextmanager
    def looking(self) -> Iterator[None]:
        thread = threading.Thread(target=self._look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()


@pytest.mark.parametrize("pool", POOLS)
def test_never_more_run_at_once_though_workers_are_killed(valkey: Server, pool: str) -> None:
    given = settings(bulk={"concurrency": 3, "max_deliveries": 50})
    with station(valkey.fresh_url(), pool, 4, settings=given) as at:
        watch = Watch(at, "queue:bulk")
        with watch.looking(), at.worker.twin() as second, at.worker.twin():
            at.send_many("mark", 400, 0.01, queue="bulk")
            at.wait_until_ran(40)
            second.kill()
            at.wait_until_ran(80)
            at.worker.kill()
            eventually(lambda: at.broker.ledger("bulk").get("done", 0) >= 400, 40)
            eventually(at.broker.holds_nothing)
        assert 1 <= watch.most <= 3
        assert watch.held() == 0


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_a_freed_slot_starts_the_next_on_a_worker_that_is_idle(valkey: Server, pool: str) -> None:
    with (
        station(valkey.fresh_url(), pool, 2, settings=settings(bulk={"concurrency": 1})) as at,
        at.worker.twin() as twin,
    ):
        at.send("held", "first", "one", queue="bulk")
        assert at.traces.next_start() == "first"
        at.send("held", "second", "two", queue="bulk")
        throughout(lambda: at.traces.total("started") == 1, 1.5)
        at.traces.open("one")
        assert at.traces.next_start(seconds=1) == "second"
        at.traces.open("two")
        at.wait_until_settled()
        assert twin.running


def test_what_a_killed_worker_held_is_free_within_a_lease(valkey: Server) -> None:
    given = settings(bulk={"concurrency": 1})
    with station(valkey.fresh_url(), "threads", 1, settings=given) as at:
        at.send("held", "first", "one", queue="bulk")
        assert at.traces.next_start() == "first"
        with at.worker.twin():
            at.worker.kill()
            assert at.traces.next_start(seconds=LEASE_SECONDS + 5) == "first"
            at.traces.open("one")
            at.wait_until_settled()


@pytest.mark.parametrize("pool", POOLS)
def test_a_blocked_task_holds_neither_a_slot_nor_what_another_needs(
    valkey: Server, pool: str
) -> None:
    given = settings({"basic.held": {"concurrency": 1}})
    # The solo pool runs one task at a time, so there the slot is another worker's.
    with (
        station(valkey.fresh_url(), pool, 2, settings=given, queues=["bulk"]) as at,
        at.worker.twin(),
    ):
        at.send("held", "first", "one", queue="bulk")
        assert at.traces.next_start() == "first"
        for n in range(40):
            at.send("held", f"blocked-{n}", "more", queue="bulk", ignore_result=True)
        at.send_many("mark", 20, queue="bulk", prefix="free")
        for _ in range(20):
            assert at.traces.next_start().startswith("free-")
        assert at.broker.ledger("bulk")["blocked"] == 40
        eventually(lambda: at.broker.unacked("bulk") == 1)
        at.traces.open("one")
        at.traces.open("more", times=40)
        assert at.traces.next_start(seconds=2) == "blocked-0"
        eventually(lambda: at.broker.ledger("bulk").get("done") == 61)
        assert at.broker.ledger("bulk").get("blocked", 0) == 0


def test_each_key_runs_at_once_with_the_others(valkey: Server) -> None:
    given = settings({"basic.held": {"concurrency": 1, "key": "gate"}})
    with station(valkey.fresh_url(), "threads", 4, settings=given) as at:
        for n in range(2):
            for gate in ("a", "b", "c"):
                at.send("held", f"{gate}{n}", gate, queue="bulk", ignore_result=True)
        assert sorted(at.traces.next_start() for _ in range(3)) == ["a0", "b0", "c0"]
        throughout(lambda: at.traces.total("started") == 3, 0.5)
        at.traces.open("b")
        assert at.traces.next_start(seconds=1) == "b1"
        for gate in ("a", "b", "c"):
            at.traces.open(gate, times=2)
        at.wait_until_settled()


@pytest.mark.parametrize("pool", ["threads", "solo", "prefork"])
def test_starts_of_several_workers_come_at_the_rate(valkey: Server, pool: str) -> None:
    with (
        station(valkey.fresh_url(), pool, 4, settings=settings(bulk={"rate": "50/s"})) as at,
        at.worker.twin(),
    ):
        at.send_many("mark", 400, queue="bulk")
        at.wait_until_ran(50)
        began, before = now_ms(at), at.broker.ledger("bulk")["done"]
        at.wait_until_ran(250)
        ended, after = now_ms(at), at.broker.ledger("bulk")["done"]
        rate = (after - before) / (ended - began) * 1000
        assert 0.9 <= rate / 50 <= 1.1
        at.app.control.purge()


def test_a_limit_that_is_set_holds_within_a_second(valkey: Server) -> None:
    with station(valkey.fresh_url(), "threads", 4, settings=settings()) as at:
        names = at.send_many("held", 8, "one", queue="bulk")
        assert {at.traces.next_start() for _ in range(4)} <= set(names)
        set_queue(at.app, "bulk", by="test", concurrency=2)
        watch = Watch(at, "queue:bulk")
        throughout(lambda: True, 1)
        at.traces.open("one", times=3)
        assert at.traces.next_start(seconds=2) in names
        throughout(lambda: at.traces.total("started") == 5, 0.5)
        at.traces.open("one", times=8)
        at.wait_until_settled()
        assert watch.held() == 0


def test_a_push_to_a_blocked_queue_wakes_nobody(valkey: Server) -> None:
    given = settings(bulk={"concurrency": 1})
    with (
        station(valkey.fresh_url(), "threads", 2, settings=given, queues=["bulk"]) as at,
        at.worker.twin(),
    ):
        at.send("held", "first", "one", queue="bulk")
        assert at.traces.next_start() == "first"
        at.send("held", "second", "two", queue="bulk")
        eventually(lambda: at.broker.client.keys("celeriac:bell:bulk*shut"))
        before = brpops(at)
        for n in range(20):
            at.send("mark", f"more-{n}", queue="bulk", ignore_result=True)
        # Each worker looks once a second, whatever happens.
        assert brpops(at) - before <= 6
        at.traces.open("one")
        at.traces.open("two")
        at.wait_until_settled()


@pytest.mark.parametrize("pool", POOLS)
def test_a_batch_takes_one_slot_of_all_workers(valkey: Server, pool: str) -> None:
    with Scene(valkey.fresh_url(), pool) as at, at.worker.twin():
        set_queue(at.app, "alone", by="test", concurrency=2)
        elapse(1)  # a setting holds within a second
        watch = Watch(at, "queue:alone")
        with watch.looking():
            at.task("alone").delay_many(range(400), ignore_result=True)
            # One message a slot would take ten seconds.
            eventually(lambda: at.broker.ledger("alone").get("done") == 400, 6)
            eventually(at.settled)
        assert 1 <= watch.most <= 2
        assert watch.held() == 0


def test_a_task_that_acknowledges_early_under_a_concurrency_is_warned_of(
    broker_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    table = settings({"basic.early": {"concurrency": 1}, "basic.mark": {"concurrency": 1}})["table"]
    app = create(broker_url, table=table)
    warn_of_early_acks(app, Topology.load(table), ["bulk"])
    warned = [record.task_name for record in caplog.records]  # type: ignore[attr-defined]
    assert warned == ["basic.early"]
    close(app)
