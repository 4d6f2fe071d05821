from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
import redis
from kombu import Connection

from routing.message.eta import Delay
from routing.redis.values import FETCH_BYTES, Arrival, Ending, Fetch, Mark, Settlement
from tests.support.messages import id_of, ids_of, numbered, task_message
from tests.support.rig import LEASE_SECONDS, Rig


def payloads(arrivals: list) -> list[bytes]:  # type: ignore[type-arg]
    return [arrival.payload for arrival in arrivals]


# -- what is fetched --------------------------------------------------------------------------


def test_a_fetch_brings_the_oldest_messages_up_to_the_credit(rig: Rig) -> None:
    rig.push(numbered(5))
    assert ids_of(payloads(rig.fetch(3))) == ["1", "2", "3"]
    assert rig.ready_ids() == ["4", "5"]


def test_each_queue_has_a_credit_of_its_own(rig: Rig) -> None:
    for queue in ("q", "other", "third"):
        rig.push(numbered(5, queue=queue), queue)
    reply = rig.exchange(other=1, q=3)
    assert [(a.queue, id_of(a.payload)) for a in reply.arrivals] == [
        ("other", "1"),
        ("q", "1"),
        ("q", "2"),
        ("q", "3"),
    ]
    assert reply.left == {"other": 4, "q": 2}
    assert rig.broker.length("third") == 5


def test_higher_priorities_come_first_and_each_in_order(rig: Rig) -> None:
    for priority in (9, 0, 6, 3, 0, 9):
        name = f"{priority}-{rig.broker.length('q')}"
        rig.push([task_message(message_id=name)], priority=priority)
    assert ids_of(payloads(rig.fetch())) == ["0-1", "0-4", "3-3", "6-2", "9-0", "9-5"]


def test_a_fetch_without_credit_brings_nothing(rig: Rig) -> None:
    rig.push(numbered(2))
    reply = rig.exchange(q=0)
    assert reply.arrivals == []
    assert reply.left == {"q": 2}


def test_an_empty_queue_brings_nothing_and_leaves_nothing(rig: Rig) -> None:
    assert rig.exchange(q=10).arrivals == []
    assert rig.broker.holds_nothing()


def test_the_reply_has_the_servers_clock(rig: Rig) -> None:
    seconds, _ = rig.broker.client.time()
    assert abs(rig.exchange(q=1).server_ms - int(seconds) * 1000) < 5000


def test_messages_of_any_content_come_back_as_they_were_pushed(rig: Rig) -> None:
    for body in ("", "grüße 🥕", '"],"",""]'):
        rig.push([task_message(body=body)])
    stored = [text.encode() for text in rig.broker.payloads("q")]
    assert payloads(rig.fetch()) == stored


def test_a_fetch_stops_near_its_byte_bound_and_loses_nothing(rig: Rig) -> None:
    megabyte = "x" * (1024 * 1024)
    rig.push([task_message(message_id=str(n), body=megabyte) for n in range(12)])
    arrivals = rig.exchange(q=1000).arrivals
    size = sum(len(arrival.payload) for arrival in arrivals)
    largest = max(len(arrival.payload) for arrival in arrivals)
    assert FETCH_BYTES - largest <= size <= FETCH_BYTES + largest
    assert rig.broker.length("q") == 12 - len(arrivals)
    assert rig.broker.unacked("q") == len(arrivals)


def test_big_messages_behind_small_ones_do_not_pass_the_byte_bound_by_far(rig: Rig) -> None:
    rig.push(numbered(100))
    megabyte = "x" * (1024 * 1024)
    for n in range(60):
        rig.push([task_message(message_id=f"big-{n}", body=megabyte)])
    size = sum(len(arrival.payload) for arrival in rig.exchange(q=1000).arrivals)
    assert FETCH_BYTES <= size <= FETCH_BYTES + 2 * len(megabyte)


def test_a_message_above_the_byte_bound_is_fetched_alone(rig: Rig) -> None:
    rig.push([task_message(body="x" * (FETCH_BYTES + 1)), task_message(message_id="next")])
    assert len(rig.exchange(q=1000).arrivals) == 1
    assert rig.ready_ids() == ["next"]


# -- what is recorded -------------------------------------------------------------------------


def test_tags_are_the_prefix_the_queue_and_a_number(rig: Rig) -> None:
    rig.push(numbered(2))
    rig.push(numbered(1, queue="other"), "other")
    tags = [arrival.tag for arrival in rig.exchange(q=5, other=5).arrivals]
    assert tags == ["w:1:1:1", "w:1:1:2", "w:1:2:1"]
    assert set(rig.broker.records()) == set(tags)


@pytest.mark.parametrize("queue", ["q", 'with "quotes" and \\', "grüße"])
def test_a_record_is_kombus_own(rig: Rig, queue: str) -> None:
    rig.push([task_message(queue=queue, message_id="1")], queue)
    (arrival,) = rig.fetch(queue=queue)
    message, exchange, routing_key = rig.broker.records()[arrival.tag]
    assert message == json.loads(arrival.payload)
    assert (exchange, routing_key) == ("", queue)


def test_stock_kombu_restores_our_records(rig: Rig) -> None:
    rig.push([task_message(message_id="1", body="grüße")])
    (arrival,) = rig.fetch()
    options = {"global_keyprefix": rig.keys.prefix, "visibility_timeout": -10}
    with Connection(rig.broker.url, transport_options=options) as connection:
        connection.channel().qos.restore_visible()
    assert rig.broker.unacked() == 0
    (restored,) = map(json.loads, rig.broker.payloads("q"))
    assert restored["body"] == json.loads(arrival.payload)["body"]
    assert restored["headers"]["redelivered"] is True


def test_kombus_index_is_scored_with_the_servers_time(rig: Rig) -> None:
    rig.push(numbered(1))
    (arrival,) = rig.fetch()
    seconds, micros = rig.broker.client.time()
    score = rig.broker.client.zscore(rig.keys.records()[1], arrival.tag)
    assert 0 <= int(seconds) + int(micros) / 1e6 - score < 5


def test_a_lease_runs_from_the_fetch(rig: Rig) -> None:
    rig.push(numbered(1))
    (arrival,) = rig.fetch()
    seconds, _ = rig.broker.client.time()
    expiry = rig.broker.client.zscore(rig.keys.records()[2], arrival.tag)
    assert abs(expiry / 1000 - int(seconds) - LEASE_SECONDS) < 5


def test_the_list_that_a_message_came_from_is_remembered(rig: Rig) -> None:
    rig.push(numbered(1), priority=6)
    (arrival,) = rig.fetch()
    origin = rig.broker.client.hget(rig.keys.records()[3], arrival.tag)
    assert origin.decode() == rig.keys.ready("q", 6)


def test_the_ledger_follows_fetches_and_endings(rig: Rig) -> None:
    rig.push(numbered(4))
    arrivals = rig.fetch(3)
    assert rig.broker.ledger("q") == {"accepted": 4, "unacked": 3}
    rig.settle(arrivals[:1])
    rig.settle(arrivals[1:2], "failed")
    assert rig.broker.ledger("q") == {"accepted": 4, "unacked": 1, "done": 1, "failed": 1}


# -- settling ---------------------------------------------------------------------------------


def test_a_settled_message_leaves_no_trace(rig: Rig) -> None:
    rig.push(numbered(3))
    rig.settle(rig.fetch())
    assert rig.broker.holds_nothing()
    assert rig.broker.length("q") == 0


def test_one_call_settles_and_fetches(rig: Rig) -> None:
    rig.push(numbered(4))
    first, second = rig.fetch(2)
    endings = [Ending("q", "done", first.tag), Ending("q", "failed", second.tag)]
    reply = rig.exchange(Settlement(endings), q=2)
    assert ids_of(payloads(reply.arrivals)) == ["3", "4"]
    assert set(rig.broker.records()) == {arrival.tag for arrival in reply.arrivals}
    assert rig.broker.ledger("q") == {"accepted": 4, "unacked": 2, "done": 1, "failed": 1}


def test_settling_twice_changes_nothing(rig: Rig) -> None:
    rig.push(numbered(2))
    first, _ = rig.fetch()
    rig.settle([first])
    rig.settle([first], "failed")
    assert rig.broker.ledger("q") == {"accepted": 2, "unacked": 1, "done": 1}
    assert rig.broker.unacked("q") == 1


def test_settling_what_went_back_changes_nothing(rig: Rig) -> None:
    rig.push(numbered(1))
    arrivals = rig.fetch()
    rig.requeue(arrivals)
    rig.settle(arrivals)
    assert rig.ready_ids() == ["1"]
    assert rig.broker.ledger("q")["unacked"] == 0


def test_thousands_are_settled_in_one_call(rig: Rig) -> None:
    rig.push(numbered(4000))
    arrivals = [*rig.fetch(2000), *rig.fetch(2000)]
    assert rig.broker.unacked("q") == 4000
    rig.settle(arrivals)
    assert rig.broker.holds_nothing()
    assert rig.broker.ledger("q")["done"] == 4000


def test_thousands_are_fetched_in_a_few_calls_that_every_queue_has_a_share_of(rig: Rig) -> None:
    rig.push(numbered(4001))
    rig.push(numbered(100, queue="other"), "other")
    first = rig.exchange(q=4000, other=100)
    assert 100 < len(first.arrivals) <= 1500
    assert first.left == {"q": 4101 - len(first.arrivals), "other": 0}
    assert len(rig.fetch(4001)) == 4101 - len(first.arrivals)
    assert rig.broker.unacked() == 4101


# -- bells ------------------------------------------------------------------------------------


def test_a_fetch_that_empties_the_queue_removes_its_bell(rig: Rig) -> None:
    rig.push(numbered(2))
    rig.fetch(2)
    assert rig.bells() == 0


def test_a_fetch_that_was_limited_by_its_credit_rings_for_others(rig: Rig) -> None:
    rig.push(numbered(3))
    rig.take_bell()
    rig.fetch(2)
    assert rig.bells() == 1


def test_a_bell_that_rings_already_is_not_rung_twice(rig: Rig) -> None:
    rig.push(numbered(3))
    rig.fetch(1)
    rig.fetch(1)
    assert rig.bells() == 1


def test_settling_alone_rings_nothing(rig: Rig) -> None:
    rig.push(numbered(3))
    arrivals = rig.fetch(1)
    rig.take_bell()
    rig.settle(arrivals)
    assert rig.bells() == 0


# -- what the server refuses -------------------------------------------------------------------

WRITES = ("hset", "zadd", "ltrim", "lpush", "rpush", "hdel", "zrem", "hincrby", "del", "pexpire")
READS = ("lrange", "llen", "hmget", "zrange", "zrangebyscore", "hlen", "exists", "time")


@pytest.fixture
def guest(rig: Rig) -> Iterator[redis.Redis]:
    """A client of a user whose rights the test may take away."""
    rig.client.execute_command("ACL", "SETUSER", "guest", "reset", "on", "nopass", "~*", "+@all")
    known = rig.client.connection_pool.connection_kwargs
    place = {name: known[name] for name in ("host", "port", "db")}
    with redis.Redis(**place, username="guest", password="any") as client:
        yield client
    rig.client.acl_deluser("guest")


@pytest.mark.parametrize("command", WRITES + READS)
def test_a_command_that_the_server_refuses_costs_no_message(
    rig: Rig, guest: redis.Redis, command: str
) -> None:
    rig.push(numbered(1, queue="other"), "other")
    settled = rig.fetch(queue="other")
    rig.push([task_message(message_id="returned")])
    rig.mark(rig.fetch(), Mark.LATER)
    rig.client.zadd(rig.keys.delayed("q"), {rig.client.zrange(rig.keys.delayed("q"), 0, 0)[0]: 1})
    moment = datetime.now(UTC)
    rig.delay([Delay(moment, f"due-{n}", task_message(message_id=f"due-{n}")) for n in range(2)])
    for name, priority in (("low", 9), ("high", 0), ("next", 0)):
        rig.push([task_message(message_id=name)], priority=priority)
    rig.push([task_message(message_id="elsewhere", queue="other")], "other")
    rig.client.execute_command("ACL", "SETUSER", "guest", f"-{command}")
    ending = Settlement([Ending("other", "done", settled[0].tag)])
    found = []
    with suppress(redis.ResponseError):
        fetch = Fetch("w:0:", (("other", 9), ("q", 9)))
        found = rig.commands.exchange(guest, ending, fetch).arrivals
    rig.settle([*found, *settled])
    lost = [Arrival(tag, "", b"") for tag in rig.broker.records()]
    if lost:
        rig.let_leases_run_out(lost)
        assert rig.reclaim() == len(lost)
    found += rig.exchange(other=9, q=9).arrivals
    names = ["due-0", "due-1", "elsewhere", "high", "low", "next", "returned"]
    assert sorted(ids_of(payloads(found))) == names
    assert rig.delayed() == 0
    rig.settle(found)
    assert rig.broker.holds_nothing()


def test_nothing_is_taken_beside_a_queue_whose_name_holds_something_else(rig: Rig) -> None:
    rig.push(numbered(2))
    rig.client.set(rig.keys.ready("other", 0), "no list")
    with pytest.raises(redis.ResponseError):
        rig.exchange(q=9, other=9)
    assert rig.broker.holds_nothing()
    assert rig.ready_ids() == ["1", "2"]


def test_delayed_messages_that_are_refused_stay_and_hold_up_no_other(
    rig: Rig, guest: redis.Redis
) -> None:
    rig.delay([Delay(datetime.now(UTC), "due", task_message(message_id="due"))])
    (member,) = rig.client.zrange(rig.keys.delayed("q"), 0, 0)
    rig.client.zadd(rig.keys.delayed("q"), {member: 1})
    rig.push(numbered(1, queue="other"), "other")
    rig.client.execute_command("ACL", "SETUSER", "guest", "-lpush")
    fetch = Fetch("w:0:", (("q", 9), ("other", 9)))
    reply = rig.commands.exchange(guest, Settlement([]), fetch)
    assert ids_of(payloads(reply.arrivals)) == ["1"]
    assert reply.due_ms["q"] > reply.server_ms
    assert rig.delayed() == 1
    with pytest.raises(redis.ResponseError):
        rig.commands.exchange(guest, Settlement([]), Fetch("w:1:", (("q", 9),)))
    assert ids_of(payloads(rig.fetch())) == ["due"]


def test_a_delayed_message_without_its_text_is_none(rig: Rig) -> None:
    rig.client.zadd(rig.keys.delayed("q"), {"evicted": 1})
    rig.push(numbered(1))
    assert ids_of(payloads(rig.fetch())) == ["1"]
    assert rig.delayed() == 0


def test_steps_of_priority_that_repeat_bring_no_message_twice(rig: Rig) -> None:
    keys = replace(rig.keys, steps=(0, 0, 3))
    assert keys.ready_lists("q") == [keys.ready("q", 0), keys.ready("q", 3)]


def test_a_quiet_queue_is_not_looked_into_until_its_bell_is_heard(rig: Rig) -> None:
    rig.push(numbered(2), queue="other")
    fetch = Fetch("w:90:", (("q", 5),), quiet=("other", "third"))
    reply = rig.commands.exchange(rig.client, Settlement([]), fetch)
    assert reply.arrivals == []
    assert list(reply.heard) == ["other"]
    assert len(rig.fetch(5, queue="other")) == 2
    assert not rig.commands.exchange(rig.client, Settlement([]), fetch).heard


def test_what_quiet_queues_cost_does_not_grow_with_the_table(rig: Rig) -> None:
    def commands(count: int) -> int:
        quiet = tuple(f"quiet-{n}" for n in range(count))
        before = _commands(rig)
        rig.commands.exchange(rig.client, Settlement([]), Fetch("w:91:", (("q", 5),), quiet=quiet))
        return _commands(rig) - before

    commands(1)  # loads the script
    assert commands(200) == commands(1)


def _commands(rig: Rig) -> int:
    """Return how many commands the server has run, those of scripts among them."""
    stats: Any = rig.client.info("commandstats")
    return sum(int(entry["calls"]) for name, entry in stats.items() if "info" not in name)
