"""What cannot be run now comes again later, to the front of its line, however often."""

from __future__ import annotations

import json
from typing import Any

import pytest

from routing.redis.values import Arrival, Mark, Return
from tests.support.messages import numbered
from tests.support.rig import Rig
from tests.support.servers import Server


def waits_ms(rig: Rig) -> list[int]:
    """Return how long each delayed message has to wait, the first due first."""
    now = rig.server_ms()
    pairs = rig.client.zrange(rig.keys.delayed("q"), 0, -1, withscores=True)
    return [int(due) - now for _, due in pairs]


def let_delays_end(rig: Rig) -> None:
    past = rig.server_ms() - 1
    for member in rig.client.zrange(rig.keys.delayed("q"), 0, -1):
        rig.client.zadd(rig.keys.delayed("q"), {member: past}, xx=True)


def noted(arrival: Arrival) -> Any:
    return json.loads(arrival.payload)["celeriac"]


def test_the_delay_doubles_from_a_second_to_a_minute_and_stays_there(rig: Rig) -> None:
    rig.push(numbered(1))
    for times, seconds in enumerate([1, 2, 4, 8, 16, 32, *[60] * 100], start=1):
        (arrival,) = rig.fetch()
        assert noted(arrival).get("returned", 0) == times - 1
        assert rig.mark([arrival], Mark.LATER) == 1
        (wait,) = waits_ms(rig)
        assert seconds * 1000 - 500 < wait <= seconds * 1000
        let_delays_end(rig)
    assert rig.deliveries() == {}
    assert rig.broker.length("q.dead") == 0


def test_what_failed_through_no_fault_of_its_own_waits_longer_and_is_not_charged(rig: Rig) -> None:
    rig.push(numbered(1))
    for times, seconds in enumerate([5, 10, 20, 40, 60, 60], start=1):
        (arrival,) = rig.fetch()
        assert noted(arrival).get("rounds", 0) == times - 1
        assert rig.mark([arrival], Mark.AGAIN) == 1
        (wait,) = waits_ms(rig)
        assert seconds * 1000 - 500 < wait <= seconds * 1000
        let_delays_end(rig)
    assert rig.deliveries() == {}
    (arrival,) = rig.fetch()
    assert "returned" not in noted(arrival)


def test_it_comes_back_to_the_front_in_its_order_with_its_age(rig: Rig) -> None:
    rig.push(numbered(5))
    taken = rig.fetch(3)
    rig.mark(taken, Mark.LATER)
    assert rig.ready_ids() == ["4", "5"]
    assert rig.fetch(0) == []
    let_delays_end(rig)
    again = rig.fetch(3)
    assert [noted(arrival)["at"] for arrival in again] == [noted(one)["at"] for one in taken]
    assert [noted(arrival)["redelivered"] for arrival in again] == [True] * 3
    assert rig.ready_ids() == ["4", "5"]
    rig.requeue(again)
    assert rig.ready_ids() == ["1", "2", "3", "4", "5"]


def test_nothing_changes_when_it_is_done_twice(rig: Rig) -> None:
    rig.push(numbered(2))
    taken = rig.fetch()
    assert rig.mark(taken, Mark.LATER) == 2
    assert rig.mark(taken, Mark.LATER) == 0
    assert rig.delayed() == 2
    ledger = rig.broker.ledger("q")
    assert (ledger["unacked"], ledger["given_back"], rig.broker.waiting_bytes("q")) == (0, 2, 0)


def test_a_delayed_message_that_goes_back_is_not_delayed_by_its_eta_again(rig: Rig) -> None:
    rig.push(numbered(1))
    rig.postpone(rig.fetch()[0], rig.server_ms())
    rig.mark(rig.fetch(), Mark.LATER)
    let_delays_end(rig)
    assert "due" in noted(rig.fetch()[0])


def test_a_full_server_takes_it_back(valkey: Server) -> None:
    rig = Rig(valkey.fresh_url())
    rig.push(numbered(2))
    taken = rig.fetch()
    try:
        rig.client.config_set("maxmemory", 1)
        assert rig.mark(taken, Mark.LATER) == 2
    finally:
        rig.client.config_set("maxmemory", 0)
    assert rig.delayed() == 2
    rig.client.close()


@pytest.mark.parametrize("text", ["no json", '"a word"'])
def test_what_is_no_message_waits_too(rig: Rig, text: str) -> None:
    rig.push([text])
    (arrival,) = rig.fetch()
    rig.commands.requeue(rig.client, "q", [Return(arrival.tag, "", Mark.LATER)])
    assert rig.delayed() == 1
    let_delays_end(rig)
    assert rig.fetch()[0].payload == arrival.payload
