from __future__ import annotations

import json

import pytest

from tests.support.messages import ids_of, numbered, task_message
from tests.support.rig import Rig


def server_ms(rig: Rig) -> int:
    seconds, micros = rig.broker.client.time()
    return int(seconds) * 1000 + int(micros) // 1000


def test_messages_wait_in_the_order_in_which_they_were_pushed(rig: Rig) -> None:
    pushed = rig.push(numbered(3))
    rig.push(numbered(2, first=4))
    assert (pushed.accepted, pushed.length, pushed.limit) == (3, 0, 0)
    assert rig.ready_ids() == ["1", "2", "3", "4", "5"]


def test_a_bound_accepts_what_fits_and_refuses_the_rest(rig: Rig) -> None:
    rig.push(numbered(2, queue="small"), "small")
    pushed = rig.push(numbered(3, queue="small", first=3), "small")
    assert (pushed.accepted, pushed.length, pushed.limit) == (1, 2, 3)
    assert rig.ready_ids("small") == ["1", "2", "3"]


def test_a_full_queue_refuses_everything_and_counts_it(rig: Rig) -> None:
    rig.push(numbered(3, queue="small"), "small")
    assert rig.push(numbered(5, queue="small", first=4), "small").accepted == 0
    assert rig.broker.ledger("small") == {"accepted": 3, "refused": 5}
    assert rig.broker.length("small") == 3


def test_a_bound_counts_messages_of_all_priorities(rig: Rig) -> None:
    for priority in (0, 3, 9):
        rig.push([task_message(queue="small")], "small", priority=priority)
    assert rig.push([task_message(queue="small")], "small", priority=6).accepted == 0


def test_a_bound_counts_what_waits_and_not_what_is_unacknowledged(rig: Rig) -> None:
    rig.push(numbered(3, queue="small"), "small")
    assert len(rig.fetch(2, "small")) == 2
    assert rig.push(numbered(3, queue="small", first=4), "small").accepted == 2


def test_work_that_was_accepted_before_is_never_refused_and_counts_as_overshoot(rig: Rig) -> None:
    rig.push(numbered(2, queue="small"), "small")
    pushed = rig.push(numbered(4, queue="small", first=3), "small", terms="exempt")
    assert pushed.accepted == 4
    assert rig.broker.ledger("small") == {"accepted": 6, "overshoot": 3}


def test_a_group_is_accepted_whole_or_not_at_all(rig: Rig) -> None:
    rig.push(numbered(2, queue="small"), "small")
    assert rig.push(numbered(2, queue="small", first=3), "small", terms="whole").accepted == 0
    assert rig.push(numbered(1, queue="small", first=3), "small", terms="whole").accepted == 1


def test_the_bell_is_rung_once_for_a_queue_that_nobody_has_looked_at(rig: Rig) -> None:
    rig.push(numbered(3))
    rig.push(numbered(3))
    assert rig.bells() == 1


def test_a_taken_bell_is_rung_again_by_the_next_push(rig: Rig) -> None:
    rig.push(numbered(1))
    rig.take_bell()
    assert rig.bells() == 0
    rig.push(numbered(1))
    assert rig.bells() == 1


def test_a_refused_push_rings_nothing(rig: Rig) -> None:
    rig.push(numbered(3, queue="small"), "small")
    rig.take_bell("small")
    rig.push(numbered(1, queue="small"), "small")
    assert rig.bells("small") == 0


def test_a_bell_that_nobody_answers_expires(rig: Rig) -> None:
    rig.push(numbered(1))
    assert 0 < rig.broker.client.pttl(rig.keys.bell("q")) <= 3_600_000


def test_a_message_keeps_the_servers_time_of_its_push(rig: Rig) -> None:
    before = server_ms(rig)
    rig.push(numbered(2))
    for text in rig.broker.payloads("q"):
        assert before <= json.loads(text)["celeriac"]["at"] <= server_ms(rig)


@pytest.mark.parametrize(
    "body",
    ["", "grüße 漢字 🥕", '"quoted" \\ and \x00', "[[], {}, 12345678901234567890, 1.0]"],
    ids=["empty", "unicode", "escapes", "what cjson would change"],
)
def test_a_message_is_stored_as_it_was_sent_apart_from_the_time(rig: Rig, body: str) -> None:
    text = task_message(body=body, message_id="1")
    rig.push([text])
    (stored,) = rig.broker.payloads("q")
    assert stored.startswith(text[:-1] + ',"celeriac":{"at":')
    without_time = {name: v for name, v in json.loads(stored).items() if name != "celeriac"}
    assert without_time == json.loads(text)


def test_a_text_with_trailing_space_gets_the_time_too(rig: Rig) -> None:
    rig.push([task_message(message_id="1") + " \n"])
    (stored,) = rig.broker.payloads("q")
    assert json.loads(stored)["celeriac"]["at"] > 0


def test_a_message_that_was_stamped_before_keeps_the_latest_time(rig: Rig) -> None:
    rig.push([task_message(message_id="1")])
    (first,) = rig.broker.payloads("q")
    rig.push([first], "other")
    (second,) = rig.broker.payloads("other")
    assert json.loads(second)["celeriac"]["at"] >= json.loads(first)["celeriac"]["at"]


def test_a_message_may_be_pushed_as_bytes(rig: Rig) -> None:
    rig.push([task_message(message_id="1").encode()])
    assert rig.ready_ids() == ["1"]


@pytest.mark.parametrize(("priority", "step"), [(0, 0), (2, 0), (3, 3), (5, 3), (6, 6), (9, 9)])
def test_a_priority_waits_in_kombus_list_for_its_step(rig: Rig, priority: int, step: int) -> None:
    rig.push([task_message(message_id="1")], priority=priority)
    assert ids_of(rig.broker.payloads("q", step=step)) == ["1"]


def test_a_queue_outside_the_table_has_neither_bound_nor_ledger(rig: Rig) -> None:
    assert rig.push(numbered(3, queue="new"), "new").accepted == 3
    assert rig.broker.ledger("new") == {}
    assert rig.bells("new") == 1


def test_every_key_has_the_prefix(rig: Rig) -> None:
    rig.push(numbered(3))
    rig.settle(rig.fetch(2)[:1])
    keys = {key.decode() for key in rig.broker.client.keys("*")}
    assert keys
    assert all(key.startswith(rig.keys.prefix) for key in keys)


def test_thousands_of_messages_may_be_pushed_in_one_call(rig: Rig) -> None:
    assert rig.push(numbered(8001)).accepted == 8001
    assert rig.ready_ids() == [str(n) for n in range(1, 8002)]
