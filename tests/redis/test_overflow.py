"""What becomes of messages for which a queue has no room: the same on every server."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from routing.redis.values import Ending, Settlement
from routing.topology.model import Topology
from routing.transport.overflow import STAMP_BYTES
from tests.support.messages import ids_of, numbered, task_message
from tests.support.rig import Rig

#: A message's bytes in its queue; all of `numbered` are as long up to "9".
SIZE = len(task_message(message_id="1", queue="q")) + STAMP_BYTES


def bounded(rig: Rig, overflow: str, **bounds: int) -> None:
    table: Mapping[str, Any] = {"queues": {"q": {"overflow": overflow, **bounds}}}
    rig.commands = type(rig.commands)(keys=rig.keys, topology=Topology.load(table))


def dropped(rig: Rig) -> list[tuple[str, str]]:
    """Return the dropped messages, oldest first, with the policy that dropped each."""
    payloads = [json.loads(text) for text in rig.broker.payloads("q.dropped")]
    return [(text["headers"]["id"], text["celeriac"]["dropped"]) for text in payloads]


def balances(rig: Rig) -> None:
    ledger = rig.broker.ledger("q")
    sinks = sum(ledger.get(name, 0) for name in ("done", "dead", "dropped", "unacked"))
    assert ledger["accepted"] == rig.broker.length("q") + sinks
    lists = [rig.broker.client.lrange(key, 0, -1) for key in rig.keys.ready_lists("q")]
    waiting = sum(len(text) for payloads in lists for text in payloads)
    assert rig.broker.waiting_bytes("q") == waiting


def test_drop_oldest_makes_room_for_what_is_new(rig: Rig) -> None:
    bounded(rig, "drop_oldest", max_length=3)
    rig.push(numbered(3))
    pushed = rig.push(numbered(2, first=4))
    assert (pushed.accepted, pushed.dropped) == (2, 2)
    assert rig.ready_ids() == ["3", "4", "5"]
    assert dropped(rig) == [("1", "drop_oldest"), ("2", "drop_oldest")]
    assert rig.broker.ledger("q") == {"accepted": 5, "dropped": 2}
    balances(rig)


def test_drop_oldest_keeps_the_newest_of_more_than_fit(rig: Rig) -> None:
    bounded(rig, "drop_oldest", max_length=2)
    rig.push(numbered(1))
    pushed = rig.push(numbered(4, first=2))
    assert (pushed.accepted, pushed.dropped) == (4, 3)
    assert rig.ready_ids() == ["4", "5"]
    assert [i for i, _ in dropped(rig)] == ["1", "2", "3"]
    balances(rig)


def test_drop_oldest_takes_from_the_least_urgent_first(rig: Rig) -> None:
    bounded(rig, "drop_oldest", max_length=3)
    rig.push([task_message(message_id="urgent")], priority=0)
    rig.push([task_message(message_id="later")], priority=9)
    rig.push([task_message(message_id="soon")], priority=3)
    rig.push(numbered(2), priority=0)
    assert [i for i, _ in dropped(rig)] == ["later", "soon"]
    assert rig.ready_ids() == ["urgent", "1", "2"]
    balances(rig)


def test_the_newest_survives_whatever_it_is(rig: Rig) -> None:
    bounded(rig, "drop_oldest", max_length=1)
    for n in range(1, 21):
        rig.push(numbered(1, first=n))
    assert rig.ready_ids() == ["20"]
    assert len(dropped(rig)) == 19


def test_drop_newest_keeps_what_waits(rig: Rig) -> None:
    bounded(rig, "drop_newest", max_length=3)
    rig.push(numbered(2))
    pushed = rig.push(numbered(3, first=3))
    assert (pushed.accepted, pushed.dropped) == (3, 2)
    assert rig.ready_ids() == ["1", "2", "3"]
    assert dropped(rig) == [("4", "drop_newest"), ("5", "drop_newest")]
    assert rig.broker.ledger("q") == {"accepted": 5, "dropped": 2}
    balances(rig)


def test_dead_letter_keeps_what_overflows_with_the_reason(rig: Rig) -> None:
    bounded(rig, "dead_letter", max_length=2)
    rig.push(numbered(2))
    pushed = rig.push(numbered(2, first=3))
    assert (pushed.accepted, pushed.dropped) == (2, 2)
    payloads = rig.broker.payloads("q.dead")
    assert ids_of(payloads) == ["3", "4"]
    trailing = json.loads(payloads[0])["celeriac"]
    assert trailing["dead"]["reason"] == "overflow"
    assert trailing["dead"]["at"] == trailing["at"]
    assert "at most 2 messages" in trailing["dead"]["message"]
    assert [i for i, _ in dropped(rig)] == ["3", "4"], "their results become final"
    assert rig.broker.ledger("q") == {"accepted": 4, "dead": 2}
    balances(rig)


def test_the_dead_letters_of_an_overflow_are_bounded_too(rig: Rig) -> None:
    bounded(rig, "dead_letter", max_length=1, max_dead=2)
    rig.push(numbered(5))
    assert ids_of(rig.broker.payloads("q.dead")) == ["4", "5"]
    assert rig.broker.ledger("q") == {"accepted": 5, "dead": 4, "dead_trimmed": 2}


def test_without_dead_letters_what_overflows_is_dropped(rig: Rig) -> None:
    bounded(rig, "dead_letter", max_length=1, max_dead=0)
    rig.push(numbered(3))
    assert rig.broker.ledger("q") == {"accepted": 3, "dropped": 2}
    assert rig.broker.length("q.dead") == 0


@pytest.mark.parametrize("overflow", ["reject", "block"])
def test_bytes_are_bounded_as_messages_are(rig: Rig, overflow: str) -> None:
    bounded(rig, overflow, max_bytes=SIZE * 3)
    pushed = rig.push(numbered(5))
    assert (pushed.accepted, pushed.size_bytes) == (3, 0)
    pushed = rig.push(numbered(1, first=6))
    assert (pushed.accepted, pushed.size_bytes) == (0, SIZE * 3)
    rig.settle(rig.fetch(1))
    assert rig.push(numbered(1, first=7)).accepted == 1
    balances(rig)


def test_the_oldest_make_room_for_bytes(rig: Rig) -> None:
    bounded(rig, "drop_oldest", max_bytes=SIZE * 3)
    rig.push(numbered(3))
    big = task_message(message_id="4", body="x" * SIZE)
    rig.push([big])
    assert rig.ready_ids()[-1] == "4"
    assert rig.broker.waiting_bytes("q") <= SIZE * 3
    balances(rig)


def test_both_bounds_hold(rig: Rig) -> None:
    bounded(rig, "drop_newest", max_bytes=SIZE * 3, max_length=2)
    rig.push(numbered(4))
    assert rig.ready_ids() == ["1", "2"]
    rig.purge()
    bounded(rig, "drop_newest", max_bytes=SIZE * 2, max_length=3)
    rig.push(numbered(4))
    assert rig.ready_ids() == ["1", "2"]


@pytest.mark.parametrize("overflow", ["drop_oldest", "drop_newest", "dead_letter", "reject"])
def test_work_that_was_accepted_before_is_let_in(rig: Rig, overflow: str) -> None:
    bounded(rig, overflow, max_length=2)
    rig.push(numbered(2))
    pushed = rig.push(numbered(2, first=3), terms="exempt")
    assert (pushed.accepted, pushed.dropped) == (2, 0)
    assert rig.ready_ids() == ["1", "2", "3", "4"]
    assert rig.broker.ledger("q") == {"accepted": 4, "overshoot": 2}


@pytest.mark.parametrize("overflow", ["drop_newest", "dead_letter"])
def test_a_group_that_does_not_fit_is_dropped_whole(rig: Rig, overflow: str) -> None:
    bounded(rig, overflow, max_length=3)
    rig.push(numbered(2))
    pushed = rig.push(numbered(2, first=3), terms="whole")
    assert (pushed.accepted, pushed.dropped) == (2, 2)
    assert rig.ready_ids() == ["1", "2"]
    rig.push(numbered(1, first=5), terms="none")
    assert rig.ready_ids() == ["1", "2"]
    assert [i for i, _ in dropped(rig)] == ["3", "4", "5"]
    balances(rig)


def test_a_push_of_nothing_says_how_much_waits_and_changes_nothing(rig: Rig) -> None:
    bounded(rig, "reject", max_bytes=SIZE * 3, max_length=3)
    rig.push(numbered(2))
    before = rig.broker.names()
    pushed = rig.push([])
    assert (pushed.accepted, pushed.length, pushed.size_bytes) == (0, 2, SIZE * 2)
    assert rig.broker.names() == before
    assert rig.broker.ledger("q") == {"accepted": 2}


def test_a_refusal_says_how_long_the_oldest_message_waits(rig: Rig) -> None:
    bounded(rig, "reject", max_length=1)
    rig.push(numbered(1))
    rig.let_pass(0.02)
    pushed = rig.push(numbered(1))
    assert pushed.accepted == 0
    assert pushed.age_ms >= 20


def test_the_dropped_are_bounded_and_what_falls_out_is_counted(rig: Rig) -> None:
    bounded(rig, "drop_newest", max_length=1)
    for _ in range(4):
        rig.push([task_message(message_id="x")] * 3000)
    assert rig.broker.length("q.dropped") == 10_000
    assert rig.broker.ledger("q")["results_lost"] == 4 * 3000 - 1 - 10_000
    balances(rig)


def test_what_is_dropped_takes_a_bounded_part_of_the_memory(rig: Rig) -> None:
    bounded(rig, "drop_newest", max_length=1)
    big = task_message(message_id="x", body="x" * 300_000)
    for _ in range(6):
        rig.push([big] * 40)
    assert rig.broker.length("q.dropped") < 200
    balances(rig)


def test_a_message_of_a_stock_producer_is_dropped_with_the_reason(rig: Rig) -> None:
    bounded(rig, "drop_oldest", max_length=1)
    rig.client.lpush(rig.keys.ready("q"), task_message(message_id="stock"))
    rig.push(numbered(1))
    assert dropped(rig) == [("stock", "drop_oldest")]


def test_what_a_message_says_itself_is_no_trailing_object(rig: Rig) -> None:
    bounded(rig, "drop_oldest", max_length=1)
    text = task_message(message_id="1", headers={"note": ',"celeriac":{"at":1}}', "celeriac": {}})
    rig.push([text])
    rig.push(numbered(1, first=2))
    (message,) = rig.broker.payloads("q.dropped")
    assert json.loads(message)["celeriac"]["dropped"] == "drop_oldest"
    assert json.loads(message)["headers"] == json.loads(text)["headers"]


def test_dropped_messages_are_taken_and_settled_like_others(rig: Rig) -> None:
    bounded(rig, "drop_oldest", max_length=1)
    rig.push(numbered(3))
    assert rig.commands.with_dropped(rig.client, ["q", "other"]) == ["q"]
    arrivals = rig.fetch(10, "q.dropped")
    assert {arrival.tag for arrival in arrivals} == set(rig.broker.records())
    rig.exchange(Settlement([Ending("q.dropped", "done", a.tag) for a in arrivals]))
    assert rig.broker.records() == {}
    assert rig.commands.with_dropped(rig.client, ["q"]) == []
    balances(rig)
