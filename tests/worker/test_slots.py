"""Slots of a worker that are reserved for a queue, or that a queue may not exceed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.messages import task_message
from tests.support.servers import Server
from tests.support.station import Station, station
from tests.support.wait import eventually

TABLE: dict[str, Any] = {
    "queues": {"default": {"prefetch": 8}, "high": {"reserve": 1}, "slow": {"limit": 1}},
}


@pytest.fixture(scope="module", params=["prefork", "threads"])
def at(request: pytest.FixtureRequest, valkey: Server) -> Iterator[Station]:
    url = valkey.fresh_url()
    with station(url, request.param, 2, settings={"table": TABLE}) as running:
        yield running


def test_a_reserved_slot_is_left_to_its_queue(at: Station) -> None:
    at.send_many("held", 3, "reserved", queue="default")
    at.traces.next_start()
    at.send("mark", "urgent", queue="high")
    assert at.traces.next_start() == "urgent"
    at.traces.open("reserved", times=3)
    at.wait_until_settled()


def test_a_task_that_acknowledged_early_still_holds_its_slot(at: Station) -> None:
    at.send("early", "first", "early", queue="slow")
    at.send("early", "second", "early", queue="slow")
    eventually(lambda: at.broker.ledger("slow").get("started") == 1)
    at.send("mark", "other", queue="high")
    while at.traces.next_run() != "other":
        pass
    assert at.broker.ledger("slow").get("started") == 1
    at.traces.open("early", times=2)
    eventually(lambda: at.broker.ledger("slow").get("started") == 2)
    at.wait_until_settled()


def test_an_early_ack_does_not_hold_up_the_other_queues(at: Station) -> None:
    at.send("early", "long", "long", queue="high")
    eventually(lambda: at.broker.ledger("high").get("started", 0) >= 1)
    at.send("mark", "meanwhile", queue="default")
    while at.traces.next_run() != "meanwhile":
        pass
    at.traces.open("long")
    at.wait_until_settled()


def test_a_reserve_for_a_queue_that_is_not_consumed_keeps_no_slot(valkey: Server) -> None:
    url = valkey.fresh_url()
    settings = {"table": TABLE}
    with station(url, "solo", 1, queues=["default"], settings=settings) as at:
        at.send("mark", "alone", queue="default")
        assert at.traces.next_run() == "alone"


def test_a_single_slot_serves_every_queue(valkey: Server) -> None:
    with station(valkey.fresh_url(), "solo", 1, settings={"table": TABLE}) as at:
        at.send("mark", "alone", queue="default")
        assert at.traces.next_run() == "alone"


def test_acks_arrive_after_the_last_queue_was_cancelled(valkey: Server) -> None:
    with station(valkey.fresh_url(), queues=["default"]) as at:
        at.send_many("held", 2, "cancelled", queue="default")
        for _ in range(2):
            at.traces.next_start()
        at.stop_consuming("default")
        at.traces.open("cancelled", times=2)
        at.wait_until_ran(2)
        at.wait_until_settled()


def test_what_cannot_be_handed_over_keeps_no_slot(at: Station) -> None:
    nested = "[" * 900 + "]" * 900  # a pool process cannot be sent that
    body = f"[[{nested},1],{{}},null]"
    at.broker.client.lpush("slow", task_message("basic.add", body=body, queue="slow"))
    assert at.send("add", 1, 2, queue="slow").get(timeout=10) == 3
    at.wait_until_settled()
