from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from routing.message.codec import raw_of, wrap
from routing.message.evidence import Evidence, of_error
from routing.redis.commands import Commands
from routing.redis.values import Arrival, Burial, Buried
from routing.topology.model import Topology
from tests.support.messages import ids_of, numbered, task_message
from tests.support.rig import Rig
from tests.support.wait import eventually

WHY = of_error("failed", ValueError('it "broke" at ,"celeriac":{ 🥕'), queue="q")


def bury(
    rig: Rig, arrivals: Sequence[Arrival], why: Evidence = WHY, *, text: str = "", **bounds: Any
) -> Buried:
    table = Topology.load({"queues": {"q": bounds}})
    burials = [Burial(a.tag, why.rest(), text) for a in arrivals]
    return Commands(keys=rig.keys, topology=table).bury(rig.client, "q", burials)


def evidence(rig: Rig) -> list[Any]:
    return rig.broker.evidence("q")


def test_a_buried_message_is_an_ordinary_message_of_the_dead_queue(rig: Rig) -> None:
    rig.push(numbered(3))
    before = [json.loads(text) for text in rig.broker.payloads("q")]
    assert bury(rig, rig.fetch(2)) == Buried(2, 0)
    after = rig.broker.dead("q")
    for letter in after:
        del letter["celeriac"]["dead"]
    assert after == before[:2]
    assert rig.broker.length("q.dead") == 2
    assert rig.broker.holds_nothing()


def test_the_evidence_says_when_and_why_it_died(rig: Rig) -> None:
    rig.push(numbered(1))
    arrivals = rig.fetch()
    bury(rig, arrivals)
    (found,) = evidence(rig)
    assert rig.broker.dead("q")[0]["celeriac"]["at"] <= found.pop("at")
    assert found.pop("deliveries") == 1
    assert found == {
        "reason": "failed",
        "queue": "q",
        "exception": "ValueError",
        "message": 'it "broke" at ,"celeriac":{ 🥕',
        "fingerprint": WHY.fingerprint,
    }


@pytest.mark.parametrize("end", ["", "  \n"], ids=["plain", "space at the end"])
def test_what_a_stock_producer_sent_gets_an_object_of_its_own(rig: Rig, end: str) -> None:
    rig.client.lpush(rig.keys.ready("q"), task_message(message_id="stock") + end)
    bury(rig, rig.fetch())
    (letter,) = rig.broker.dead("q")
    assert letter["headers"]["id"] == "stock"
    assert letter["celeriac"]["dead"]["reason"] == "failed"


def test_a_header_that_looks_like_ours_is_left_alone(rig: Rig) -> None:
    headers = {"celeriac": {"at": 1}, "text": ',"celeriac":{"at":1}}'}
    text = task_message(headers=headers)
    rig.client.lpush(rig.keys.ready("q"), text)
    bury(rig, rig.fetch())
    (letter,) = rig.broker.dead("q")
    assert letter["headers"] == json.loads(text)["headers"]
    assert letter["celeriac"]["dead"]["reason"] == "failed"


def test_what_is_no_message_is_kept_in_the_form_of_one(rig: Rig) -> None:
    raw = b'\xff\x00 {"no": message'
    rig.client.lpush(rig.keys.ready("q"), raw)
    (arrival,) = rig.fetch()
    rig.commands.bury(
        rig.client, "q", [Burial(arrival.tag, WHY.rest(), wrap(arrival.payload, queue="q"))]
    )
    (letter,) = rig.broker.dead("q")
    assert raw_of(letter) == raw


def test_deliveries_that_were_charged_are_counted(rig: Rig) -> None:
    rig.push(numbered(1))
    rig.requeue(rig.fetch(), charge=True)
    rig.requeue(rig.fetch(), charge=True)
    bury(rig, rig.fetch())
    assert evidence(rig)[0]["deliveries"] == 3


def test_burying_twice_changes_nothing(rig: Rig) -> None:
    rig.push(numbered(2))
    arrivals = rig.fetch()
    bury(rig, arrivals[:1])
    assert bury(rig, arrivals) == Buried(1, 0)
    assert bury(rig, arrivals) == Buried(0, 0)
    assert ids_of(rig.broker.payloads("q.dead")) == ["1", "2"]


def test_the_oldest_make_room(rig: Rig) -> None:
    rig.push(numbered(5))
    assert bury(rig, rig.fetch(2), max_dead=3) == Buried(2, 0)
    assert bury(rig, rig.fetch(3), max_dead=3) == Buried(3, 2)
    assert ids_of(rig.broker.payloads("q.dead")) == ["3", "4", "5"]


def test_dead_letters_age(rig: Rig) -> None:
    rig.push(numbered(3))
    bury(rig, rig.fetch())
    assert bury(rig, [], max_dead_age=60.0) == Buried(0, 0)
    trimmed = 0

    def all_aged() -> bool:
        nonlocal trimmed
        trimmed += bury(rig, [], max_dead_age=0.001).trimmed
        return trimmed == 3

    eventually(all_aged)
    assert rig.broker.length("q.dead") == 0


def test_a_bound_of_none_empties_the_dead_letters(rig: Rig) -> None:
    rig.push(numbered(2))
    bury(rig, rig.fetch())
    assert bury(rig, [], max_dead=0) == Buried(0, 2)


def test_the_ledger_counts_the_buried_and_the_trimmed(rig: Rig) -> None:
    rig.push(numbered(4))
    bury(rig, rig.fetch(3), max_dead=2)
    ledger = rig.broker.ledger("q")
    assert {name: ledger[name] for name in ("accepted", "unacked", "dead", "dead_trimmed")} == {
        "accepted": 4,
        "unacked": 0,
        "dead": 3,
        "dead_trimmed": 1,
    }


def test_thousands_are_buried_in_order(rig: Rig) -> None:
    rig.push(numbered(1000))
    assert bury(rig, rig.fetch()) == Buried(1000, 0)
    assert ids_of(rig.broker.payloads("q.dead")) == [str(n) for n in range(1, 1001)]
