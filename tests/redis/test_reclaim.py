"""Leases: who renews keeps, who has gone loses, and an outage of the broker is nobody's death."""

from __future__ import annotations

import json
from contextlib import closing

import pytest
import redis

from routing.redis.commands import RECLAIM_AT_MOST, Commands
from routing.topology.model import Topology
from tests.support.messages import id_of, ids_of, numbered
from tests.support.rig import LEASE_SECONDS, Rig
from tests.support.servers import Server
from tests.support.users import NEEDED, User


def test_a_lease_that_ran_out_returns_its_message_to_the_front(rig: Rig) -> None:
    rig.push(numbered(5))
    rig.let_leases_run_out(rig.fetch(3))
    assert rig.reclaim() == 3
    assert rig.ready_ids() == ["1", "2", "3", "4", "5"]
    assert rig.broker.holds_nothing()
    assert rig.bells() == 1
    ledger = rig.broker.ledger("q")
    assert (ledger["accepted"], ledger["unacked"], ledger["reclaimed"]) == (5, 0, 3)


def test_a_worker_that_does_not_know_the_queue_returns_its_messages_and_counts_them(
    rig: Rig,
) -> None:
    rig.push(numbered(3))
    rig.let_leases_run_out(rig.fetch(2))
    rig.take_bell()
    stranger = Commands(keys=rig.keys, topology=Topology.load({"queues": {"elsewhere": {}}}))
    assert rig.reclaim(stranger) == 2
    assert rig.ready_ids() == ["1", "2", "3"]
    assert rig.bells() == 1
    ledger = rig.broker.ledger("q")
    assert (ledger["unacked"], ledger["reclaimed"]) == (0, 2)


def test_a_lease_that_runs_is_left_alone(rig: Rig) -> None:
    rig.push(numbered(2))
    mine, theirs = rig.fetch(1), rig.fetch(1)
    rig.let_leases_run_out(mine)
    assert rig.reclaim() == 1
    assert rig.renew(theirs) == []
    assert rig.broker.unacked() == 1


def test_renewing_keeps_a_message_and_names_what_is_gone(rig: Rig) -> None:
    rig.push(numbered(2))
    first, second = rig.fetch(1), rig.fetch(1)
    rig.let_leases_run_out([*first, *second])
    assert rig.renew(second) == []
    assert rig.reclaim() == 1
    assert rig.renew([*first, *second]) == [first[0].tag]


def test_a_renewal_is_seen_by_stock_workers(rig: Rig) -> None:
    rig.push(numbered(1))
    arrivals = rig.fetch()
    index = rig.keys.records()[1]
    rig.broker.client.zadd(index, {arrivals[0].tag: 1})
    rig.renew(arrivals)
    score = rig.broker.client.zscore(index, arrivals[0].tag)
    assert abs(score - rig.broker.client.time()[0]) < 60


def test_only_what_was_started_is_charged(rig: Rig) -> None:
    rig.push(numbered(3))
    arrivals = rig.fetch()
    rig.renew(arrivals[:1], started=True)
    rig.let_leases_run_out(arrivals)
    rig.reclaim()
    assert rig.broker.charges() == {"1": (1, "the lease of w@test ran out")}


def test_what_was_taken_over_says_so(rig: Rig) -> None:
    rig.push(numbered(1))
    (before,) = rig.broker.payloads("q")
    for _ in range(2):
        rig.let_leases_run_out(rig.fetch())
        rig.reclaim()
    (after,) = rig.broker.payloads("q")
    expected = json.loads(before)
    expected["celeriac"]["redelivered"] = True
    assert json.loads(after) == expected


def test_a_settled_start_leaves_no_mark(rig: Rig) -> None:
    rig.push(numbered(2))
    arrivals = rig.fetch()
    rig.renew(arrivals, started=True)
    rig.settle(arrivals[:1])
    rig.requeue(arrivals[1:])
    assert rig.renew(arrivals, started=True) == [arrival.tag for arrival in arrivals]
    assert not rig.broker.client.exists(rig.keys.records()[4])


def test_after_an_outage_everybody_has_a_lease_of_time_to_renew(rig: Rig) -> None:
    rig.push(numbered(1))
    rig.let_leases_run_out(rig.fetch())
    assert rig.commands.reclaim(rig.client) == -1, "nobody had looked before"
    assert rig.commands.reclaim(rig.client) == -1, "that was not a lease ago"
    now = rig.broker.client.time()[0] * 1000
    state = rig.broker.client.hgetall(rig.keys.reclaiming())
    assert now < int(state[b"not_before"]) <= now + LEASE_SECONDS * 1000 + 5000
    rig.broker.client.hset(rig.keys.reclaiming(), "not_before", now - 1)
    assert rig.commands.reclaim(rig.client) == 1


def test_messages_return_to_their_own_queue_and_priority(rig: Rig) -> None:
    rig.push(numbered(2), priority=3)
    rig.push(numbered(2, queue='a "b" ],'), 'a "b" ],')
    arrivals = [*rig.fetch(), *rig.fetch(queue='a "b" ],')]
    rig.let_leases_run_out(arrivals)
    assert rig.reclaim() == 4
    assert ids_of(rig.broker.payloads("q", step=3)) == ["1", "2"]
    assert rig.ready_ids('a "b" ],') == ["1", "2"]


def test_thousands_return_in_the_order_of_their_fetch(rig: Rig) -> None:
    count = 2 * RECLAIM_AT_MOST + 100
    rig.push(numbered(count))
    arrivals = [arrival for _ in range(4) for arrival in rig.fetch(count // 4)]
    rig.let_leases_run_out(arrivals)
    assert [rig.reclaim() for _ in range(4)] == [RECLAIM_AT_MOST, RECLAIM_AT_MOST, 100, 0]
    assert rig.ready_ids() == [id_of(arrival.payload) for arrival in arrivals]
    assert rig.broker.holds_nothing()


def test_thousands_are_renewed_in_slices(rig: Rig) -> None:
    rig.push(numbered(2500))
    arrivals = rig.fetch(2500)
    rig.settle(arrivals[::100])
    assert rig.renew(arrivals) == [arrival.tag for arrival in arrivals[::100]]


def test_what_cannot_go_back_keeps_nothing_else(rig: Rig) -> None:
    rig.push(numbered(5))
    rig.push(numbered(2 * RECLAIM_AT_MOST, queue="other"), "other")
    arrivals = [*rig.fetch(), *rig.fetch(queue="other")]
    rig.client.set(rig.keys.ready("other"), "somebody's own")
    rig.let_leases_run_out(arrivals)
    assert rig.reclaim() == 5
    with pytest.raises(redis.ResponseError, match=f"key {rig.keys.ready('other')}"):
        rig.reclaim()
    assert rig.ready_ids() == ["1", "2", "3", "4", "5"]
    rig.client.delete(rig.keys.ready("other"))
    assert rig.reclaim() == RECLAIM_AT_MOST


def test_names_of_workers_that_have_gone_do_not_gather(rig: Rig) -> None:
    rig.push(numbered(1))
    rig.renew(rig.fetch())
    rig.reclaim()
    assert rig.broker.client.hgetall(rig.keys.workers()) == {b"w": b"w@test"}
    rig.broker.client.hset(rig.keys.reclaiming(), "swept", 1)
    rig.commands.reclaim(rig.client)
    assert not rig.broker.client.exists(rig.keys.workers())


def test_what_a_user_may_not_return_is_left_to_one_who_may(valkey: Server) -> None:
    """Two apps share a database, each with keys of its own."""
    user = User(valkey, *NEEDED, "resetkeys", "~celeriac:*", "~unacked*", "~other*")
    rig, stranger = Rig(user.admin_url), Rig(user.url)
    with closing(rig.broker.client), closing(stranger.broker.client):
        rig.push(numbered(2))
        rig.push(numbered(1), "other")
        rig.let_leases_run_out([*rig.fetch(), *rig.fetch(queue="other")])
        assert stranger.reclaim() == 1
        assert rig.ready_ids("other") == ["1"]
        assert rig.broker.unacked() == 2
        assert rig.reclaim() == 2
        assert rig.ready_ids() == ["1", "2"]
        assert rig.broker.holds_nothing()


def test_of_those_that_ran_in_one_call_none_is_charged_and_all_note_their_number(rig: Rig) -> None:
    rig.push(numbered(4))
    arrivals = rig.fetch(3)
    rig.renew(arrivals, started=True, company=3)
    rig.let_leases_run_out(arrivals)
    assert rig.reclaim() == 3
    assert rig.deliveries() == {}
    again = rig.fetch(4)
    noted = [json.loads(arrival.payload)["celeriac"].get("company") for arrival in again]
    assert noted == [3, 3, 3, None]
    rig.renew(again[:1], started=True, company=1)
    rig.renew(again[1:3], started=True, company=2)
    rig.let_leases_run_out(again)
    assert rig.reclaim() == 4
    assert rig.deliveries() == {"1": 1}
    noted = [json.loads(arrival.payload)["celeriac"].get("company") for arrival in rig.fetch(4)]
    assert noted == [3, 2, 2, None]
