"""Nothing waits in a worker whose slots are busy while another one has a slot free."""

from __future__ import annotations

import pytest

from tests.support.servers import Server
from tests.support.station import station
from tests.support.wait import throughout

POOLS = ["prefork", "threads", "gevent", "solo"]


@pytest.mark.parametrize("pool", POOLS)
def test_two_idle_workers_share_what_keeps_their_slots(valkey: Server, pool: str) -> None:
    with station(valkey.fresh_url(), pool, 2) as at, at.worker.twin() as twin:
        slots = at.worker.slots + twin.slots
        at.send_many("held", slots, "gate", queue="bulk")
        for _ in range(slots):
            at.traces.next_start()
        at.traces.open("gate", times=slots)
        at.wait_until_ran(slots)


@pytest.mark.parametrize("pool", POOLS)
def test_what_turns_out_to_be_long_leaves_the_rest_to_others(valkey: Server, pool: str) -> None:
    """Short tasks have taught both workers to fetch ahead, and then long ones come."""
    with station(valkey.fresh_url(), pool, 2) as at, at.worker.twin() as twin:
        slots = at.worker.slots + twin.slots
        ran = 0
        for _ in range(3):
            at.send_many("mark", 100, queue="bulk")
            at.wait_until_ran(ran := ran + 100)
            at.traces.client.delete("starts")
            names = at.send_many("held", slots + 4, "gate", queue="bulk")
            assert {at.traces.next_start() for _ in range(slots)} <= set(names)
            at.traces.open("gate", times=slots + 4)
            at.wait_until_ran(ran := ran + slots + 4)
            at.wait_until_settled()


@pytest.mark.parametrize("pool", POOLS)
def test_what_comes_while_every_slot_is_busy_stays_in_its_queue(valkey: Server, pool: str) -> None:
    with station(valkey.fresh_url(), pool, 2) as at:
        slots = at.worker.slots
        at.send_many("held", slots, "gate", queue="bulk")
        for _ in range(slots):
            at.traces.next_start()
        at.send_many("mark", 20, queue="bulk")
        throughout(lambda: at.broker.length("bulk") == 20, 0.3)
        with at.worker.twin():
            at.wait_until_ran(20)
            at.traces.open("gate", times=slots)
            at.wait_until_ran(20 + slots)
            at.wait_until_settled()
        assert set(at.traces.counts().values()) == {1}
