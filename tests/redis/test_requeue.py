from __future__ import annotations

import json

import pytest

from routing.redis.values import Mark, Return
from tests.support.messages import ids_of, numbered, task_message
from tests.support.rig import Rig


def test_messages_go_back_to_the_front_in_their_order(rig: Rig) -> None:
    rig.push(numbered(5))
    arrivals = rig.fetch(3)
    assert rig.requeue(arrivals) == 3
    assert rig.ready_ids() == ["1", "2", "3", "4", "5"]
    assert rig.broker.holds_nothing()


def test_a_message_goes_back_as_it_was(rig: Rig) -> None:
    awkward = ("", "grüße 🥕", '"],"","q"]', '","" , ')
    rig.push([task_message(body=body) for body in awkward])
    before = rig.broker.payloads("q")
    rig.requeue(rig.fetch())
    assert rig.broker.payloads("q") == before


def test_a_message_goes_back_to_the_list_of_its_priority(rig: Rig) -> None:
    rig.push(numbered(2), priority=3)
    rig.requeue(rig.fetch())
    assert ids_of(rig.broker.payloads("q", step=3)) == ["1", "2"]


def test_a_queue_name_with_quotes_is_no_obstacle(rig: Rig) -> None:
    queue = 'a "b" ],'
    rig.push(numbered(2, queue=queue), queue)
    assert rig.requeue(rig.fetch(queue=queue)) == 2
    assert rig.ready_ids(queue) == ["1", "2"]


def test_going_back_charges_no_delivery_unless_asked(rig: Rig) -> None:
    rig.push(numbered(2))
    rig.requeue(rig.fetch())
    assert rig.deliveries() == {}


def test_a_charge_counts_each_delivery(rig: Rig) -> None:
    rig.push(numbered(2))
    rig.requeue(rig.fetch(1), charge=True)
    rig.requeue(rig.fetch(2), charge=True)
    assert rig.deliveries() == {"1": 2, "2": 1}


def test_going_back_rings_the_bell(rig: Rig) -> None:
    rig.push(numbered(2))
    arrivals = rig.fetch()
    assert rig.bells() == 0
    rig.requeue(arrivals)
    assert rig.bells() == 1


def test_tags_that_are_gone_are_passed_over(rig: Rig) -> None:
    rig.push(numbered(3))
    arrivals = rig.fetch()
    rig.settle(arrivals[1:2])
    assert rig.requeue(arrivals) == 2
    assert rig.requeue(arrivals) == 0
    assert rig.ready_ids() == ["1", "3"]


def test_a_reply_that_nobody_read_goes_back_by_enumeration(rig: Rig) -> None:
    rig.push(numbered(3))
    rig.exchange(q=10)
    entries = [Return(f"w:1:1:{n}") for n in range(1, 11)]
    assert rig.commands.requeue(rig.client, "q", entries) == 3
    assert rig.ready_ids() == ["1", "2", "3"]


def test_thousands_go_back_in_order(rig: Rig) -> None:
    rig.push(numbered(4000))
    arrivals = rig.fetch(3500)
    assert rig.requeue(arrivals) == 3500
    assert rig.ready_ids() == [str(n) for n in range(1, 4001)]
    assert rig.broker.holds_nothing()


def test_the_bound_does_not_refuse_what_goes_back(rig: Rig) -> None:
    rig.push(numbered(3, queue="small"), "small")
    arrivals = rig.fetch(queue="small")
    rig.push(numbered(3, queue="small", first=4), "small")
    rig.requeue(arrivals)
    assert rig.ready_ids("small") == ["1", "2", "3", "4", "5", "6"]


def test_the_ledger_counts_what_went_back(rig: Rig) -> None:
    rig.push(numbered(3))
    rig.requeue(rig.fetch(2))
    assert rig.broker.ledger("q") == {"accepted": 3, "unacked": 0, "given_back": 2}


def test_a_message_that_went_back_keeps_the_time_of_its_push(rig: Rig) -> None:
    rig.push(numbered(1))
    (before,) = rig.broker.payloads("q")
    rig.requeue(rig.fetch())
    (after,) = rig.broker.payloads("q")
    assert json.loads(after)["celeriac"] == json.loads(before)["celeriac"]


def test_the_evidence_of_the_last_charge_is_kept(rig: Rig) -> None:
    rig.push(numbered(1))
    rig.mark(rig.fetch(), Mark.COUNTED, "signal 9")
    rig.mark(rig.fetch(), Mark.COUNTED, "out of memory")
    assert rig.broker.charges() == {"1": (2, "out of memory")}


@pytest.mark.parametrize(
    ("why", "kept"),
    [
        ('"} \\u00e9 {"a"}\n\x00\x7f', "'   u00e9  'a'    "),
        ("x" * 1000, "x" * 150),
        ("x" * 149 + "🥕", "x" * 149),
        ("x" * 148 + "éé", "x" * 148 + "é"),
        ("🥕" * 50, "🥕" * 37),
        ("", ""),
    ],
    ids=["signs of JSON", "long", "cut in a character", "cut after one", "long ones", "none"],
)
def test_evidence_of_any_text_leaves_the_message_whole(rig: Rig, why: str, kept: str) -> None:
    rig.push([task_message(message_id="1", body=why)])
    (before,) = rig.broker.payloads("q")
    for _ in range(3):
        rig.mark(rig.fetch(), Mark.COUNTED, why)
    (after,) = rig.broker.payloads("q")
    noted = {"redelivered": True, "deliveries": 3, "charged": kept}
    expected = json.loads(before)
    expected["celeriac"] |= noted
    assert json.loads(after) == expected
    assert after.count('"charged"') == 1


def test_a_message_with_every_note_keeps_them_through_another_round(rig: Rig) -> None:
    """They stand in the last bytes of a message, of which only so many are looked at."""
    due, most = 1_700_000_000_000, 10**6
    ours = {"at": due, "due": due, "returned": most, "redelivered": True}
    ours |= {"deliveries": most, "charged": "x" * 150, "dropped": "dead_letter"}
    end = json.dumps(ours, separators=(",", ":"))
    rig.client.lpush(
        rig.keys.ready("q"), task_message(message_id="1")[:-1] + f',"celeriac":{end}}}'
    )
    rig.mark(rig.fetch(), Mark.COUNTED, "once more")
    (after,) = rig.broker.payloads("q")
    assert after.count('"celeriac":') == 1
    assert json.loads(after)["celeriac"] == ours | {"deliveries": most + 1, "charged": "once more"}


def test_counts_that_an_older_version_kept_apart_harm_nobody(rig: Rig) -> None:
    rig.client.hset(rig.keys.prefix + "celeriac:deliveries", "1", "4 its process was lost")
    rig.push(numbered(2))
    arrivals = rig.fetch()
    rig.mark(arrivals[:1], Mark.COUNTED, "signal 9")
    rig.settle(arrivals[1:])
    assert rig.broker.charges() == {"1": (1, "signal 9")}


def test_a_message_that_may_have_run_says_so_once(rig: Rig) -> None:
    rig.push(numbered(1))
    (before,) = rig.broker.payloads("q")
    for mark in (Mark.REDELIVERED, Mark.COUNTED, Mark.NONE):
        rig.mark(rig.fetch(), mark)
    (after,) = rig.broker.payloads("q")
    expected = json.loads(before)
    expected["celeriac"]["redelivered"] = True
    expected["celeriac"] |= {"deliveries": 1, "charged": ""}
    assert json.loads(after) == expected
    assert after.count("redelivered") == 1


def test_a_message_of_a_stock_producer_is_marked_too(rig: Rig) -> None:
    text = task_message(message_id="1", headers={"celeriac": {"at": 7}})
    rig.client.lpush(rig.keys.ready("q"), text)
    rig.mark(rig.fetch(), Mark.REDELIVERED)
    (after,) = rig.broker.payloads("q")
    assert json.loads(after) == json.loads(text) | {"celeriac": {"redelivered": True}}
