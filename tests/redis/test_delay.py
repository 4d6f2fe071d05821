"""Delayed messages in the broker: kept apart, bounded, and ready when they are due."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest

from routing.message.eta import Delay, eta_of, in_ms
from routing.redis.values import Arrival
from tests.support.messages import id_of, ids_of, task_message
from tests.support.rig import Rig
from tests.support.wait import eventually

LONG_MS = 3_600_000


def delays(*waits_ms: int, first: int = 1, text: str = "") -> list[Delay]:
    """Return delays with the ids "1", "2", ..."""
    return [
        Delay(later(wait), str(n), text or task_message(message_id=str(n)))
        for n, wait in enumerate(waits_ms, start=first)
    ]


def later(wait_ms: int) -> datetime:
    return datetime.now(UTC) + timedelta(milliseconds=wait_ms)


def due(rig: Rig, queue: str = "q", credit: int = 1000) -> list[Arrival]:
    return eventually(lambda: rig.fetch(credit, queue))


def fetched(arrivals: Sequence[Arrival]) -> list[str]:
    return [id_of(arrival.payload) for arrival in arrivals]


def test_a_message_waits_until_it_is_due_and_is_never_early(rig: Rig) -> None:
    before = rig.server_ms()
    rig.delay(delays(150))
    assert rig.fetch() == []
    (arrival,) = due(rig)
    assert rig.server_ms() - before >= 150
    assert id_of(arrival.payload) == "1"


def test_a_fetch_tells_when_the_next_message_is_due(rig: Rig) -> None:
    assert rig.exchange(q=1).due_ms == {}
    before = rig.server_ms()
    rig.delay(delays(LONG_MS, LONG_MS * 2))
    rig.delay(delays(LONG_MS * 3), "other")
    first = min(rig.exchange(q=1, other=1).due_ms.values())
    assert LONG_MS <= first - before < LONG_MS + 60_000
    assert rig.exchange(other=1).due_ms["other"] - first >= LONG_MS


def test_messages_leave_in_the_order_in_which_they_are_due(rig: Rig) -> None:
    rig.delay(delays(60, 20, 40))
    rig.let_pass(0.1)
    assert fetched(rig.fetch()) == ["2", "3", "1"]


def test_messages_that_are_due_together_leave_in_the_order_in_which_they_came(rig: Rig) -> None:
    rig.delay(delays(*[30] * 12))
    rig.let_pass(0.05)
    assert fetched(rig.fetch()) == [str(n) for n in range(1, 13)]


def test_what_is_due_goes_behind_what_waits(rig: Rig) -> None:
    rig.push([task_message(message_id="waits")])
    rig.delay(delays(0))
    rig.let_pass(0.01)
    assert fetched(rig.fetch(1)) == ["waits"]
    assert rig.ready_ids() == ["1"]
    assert rig.bells() == 1


def test_what_is_due_and_not_taken_wakes_somebody_else(rig: Rig) -> None:
    rig.delay(delays(0, 0, 0))
    rig.take_bell()
    rig.let_pass(0.01)
    reply = rig.exchange(q=1)
    assert (len(reply.arrivals), reply.left, rig.bells()) == (1, {"q": 2}, 1)


def test_a_message_returns_to_the_list_of_its_priority(rig: Rig) -> None:
    rig.delay(delays(0), priority=6)
    rig.delay(delays(0, first=2), priority=0)
    rig.let_pass(0.01)
    assert fetched(rig.fetch(1)) == ["2"]
    assert ids_of(rig.broker.payloads("q", step=6)) == ["1"]


def test_equal_messages_stay_apart(rig: Rig) -> None:
    text = task_message(message_id="same")
    rig.delay([Delay(later(0), "same", text)] * 3)
    rig.delay([Delay(later(0), "same", text)])
    rig.let_pass(0.01)
    assert fetched(rig.fetch()) == ["same"] * 4


def test_a_message_that_is_due_bears_the_time_from_which_its_age_counts(rig: Rig) -> None:
    before = rig.server_ms()
    text = task_message(message_id="1", body='"quoted" \\ [] 12345678901234567890')
    rig.delay([Delay(later(20), "1", text + " \n")])
    (arrival,) = due(rig)
    assert arrival.payload.decode().startswith(text[:-1] + ',"celeriac":{"at":')
    mark = json.loads(arrival.payload)["celeriac"]
    assert mark["at"] == mark["due"] >= before + 20


def test_what_is_no_message_is_not_lost_among_the_delayed(rig: Rig) -> None:
    rig.delay([Delay(later(0), "", "no message"), *delays(0)])
    rig.let_pass(0.01)
    assert [arrival.payload[:10] for arrival in rig.fetch()] == [b"no message", b'{"body": "']


def test_one_fetch_makes_at_most_five_hundred_ready_and_says_that_more_are_due(rig: Rig) -> None:
    rig.delay(delays(*[0] * 1100))
    rig.let_pass(0.01)
    reply = rig.exchange(q=5)
    assert 0 < reply.due_ms["q"] <= reply.server_ms
    assert reply.left == {"q": 495}
    assert fetched([*reply.arrivals, *rig.fetch(2000), *rig.fetch(2000)]) == [
        str(n) for n in range(1, 1101)
    ]


def test_the_limit_of_one_fetch_is_shared_by_its_queues(rig: Rig) -> None:
    rig.delay(delays(*[0] * 400))
    rig.delay(delays(*[0] * 400), "other")
    rig.let_pass(0.01)
    reply = rig.exchange(q=1, other=1)
    assert reply.left == {"q": 399, "other": 99}
    assert rig.exchange(other=1).left == {"other": 398}


def test_thousands_may_be_delayed_in_one_call(rig: Rig) -> None:
    assert rig.delay(delays(*[LONG_MS] * 4000)).accepted == 4000
    assert rig.delayed() == 4000


def test_the_ledger_counts_delayed_messages_as_accepted(rig: Rig) -> None:
    rig.delay(delays(0, LONG_MS))
    assert rig.broker.ledger("q") == {"accepted": 2}
    rig.let_pass(0.01)
    rig.settle(rig.fetch())
    assert rig.broker.ledger("q") == {"accepted": 2, "done": 1, "unacked": 0}
    assert rig.delayed() == 1


def test_a_bound_keeps_what_fits_and_refuses_the_rest(rig: Rig) -> None:
    rig.delay(delays(LONG_MS), "few")
    kept = rig.delay(delays(LONG_MS, LONG_MS, first=2), "few")
    assert (kept.accepted, kept.length, kept.limit) == (1, 1, 2)
    assert rig.broker.ledger("few") == {"accepted": 2, "refused": 1}
    assert rig.delayed("few") == 2


def test_a_group_is_delayed_whole_or_not_at_all(rig: Rig) -> None:
    assert rig.delay(delays(*[LONG_MS] * 3), "few", terms="whole").accepted == 0
    assert rig.delay(delays(*[LONG_MS] * 2), "few", terms="whole").accepted == 2


@pytest.mark.parametrize(
    ("queue", "left", "counter"),
    [("few-oldest", ["2", "3"], "dropped"), ("few-newest", ["1", "2"], "dropped")],
)
def test_a_policy_that_drops_keeps_the_bound(
    rig: Rig, queue: str, left: list[str], counter: str
) -> None:
    rig.delay(delays(0), queue)
    kept = rig.delay(delays(1, 2, first=2), queue)
    assert (kept.accepted, kept.dropped) == (2, 1)
    assert rig.broker.ledger(queue) == {"accepted": 3, counter: 1}
    (gone,) = rig.broker.client.lrange(rig.keys.dropped(queue), 0, -1)
    assert json.loads(gone)["celeriac"]["dropped"] == queue.replace("few-", "drop_")
    rig.let_pass(0.01)
    assert fetched(rig.fetch(queue=queue)) == left


def test_more_new_ones_than_the_bound_drop_the_oldest_of_them_too(rig: Rig) -> None:
    rig.delay(delays(LONG_MS), "few-oldest")
    kept = rig.delay(delays(*[0] * 5, first=2), "few-oldest")
    assert (kept.accepted, kept.dropped) == (5, 4)
    rig.let_pass(0.01)
    assert fetched(rig.fetch(queue="few-oldest")) == ["5", "6"]


def test_a_bound_may_make_dead_letters(rig: Rig) -> None:
    rig.delay(delays(*[LONG_MS] * 3), "few-dead")
    assert rig.broker.ledger("few-dead") == {"accepted": 3, "dead": 1}
    (text,) = rig.broker.client.lrange(rig.keys.dead("few-dead"), 0, -1)
    assert id_of(text) == "3"
    assert json.loads(text)["celeriac"]["dead"]["reason"] == "overflow"
    assert rig.broker.client.llen(rig.keys.dropped("few-dead")) == 1


def test_work_that_was_accepted_before_is_delayed_above_the_bound(rig: Rig) -> None:
    assert rig.delay(delays(*[LONG_MS] * 5), "few", terms="exempt").accepted == 5
    assert rig.broker.ledger("few") == {"accepted": 5, "overshoot": 3}


def test_the_bound_of_delayed_messages_is_not_that_of_waiting_ones(rig: Rig) -> None:
    rig.delay(delays(*[LONG_MS] * 2), "few")
    assert rig.push([task_message(queue="few")] * 5, "few").accepted == 5
    assert rig.delay(delays(*[LONG_MS] * 5), "small").accepted == 5


def test_a_bell_is_rung_for_a_message_that_is_due_before_all_others(rig: Rig) -> None:
    rig.delay(delays(LONG_MS))
    rig.take_bell()
    rig.delay(delays(LONG_MS * 2))
    assert rig.bells() == 0
    rig.delay(delays(LONG_MS // 2))
    assert rig.bells() == 1


def test_a_purge_drops_and_counts_delayed_messages(rig: Rig) -> None:
    rig.push([task_message()])
    rig.delay(delays(LONG_MS, LONG_MS))
    assert rig.purge() == 3
    assert rig.delayed() == 0
    assert rig.broker.ledger("q") == {"accepted": 3, "purged": 3}
    assert rig.broker.names("*delayed*") == {rig.keys.delayed_count()}


def test_a_fetched_message_is_postponed_until_it_is_due(rig: Rig) -> None:
    rig.push([task_message(message_id="1")], priority=6)
    (arrival,) = rig.fetch()
    assert rig.postpone(arrival, rig.server_ms() + 100)
    assert rig.bells() == 1
    assert rig.broker.holds_nothing()
    assert rig.broker.ledger("q") == {"accepted": 1, "unacked": 0}
    assert rig.delayed() == 1
    (again,) = due(rig)
    assert again.payload.startswith(arrival.payload[:-1])
    assert json.loads(again.payload)["celeriac"]["due"] > 0
    assert set(rig.broker.client.hvals(rig.keys.records()[3])) == {rig.keys.ready("q", 6).encode()}


def test_the_age_of_a_message_whose_eta_has_passed_counts_from_now(rig: Rig) -> None:
    rig.push([task_message(message_id="1")])
    (arrival,) = rig.fetch()
    before = rig.server_ms()
    rig.postpone(arrival, 1000)
    (again,) = due(rig)
    assert json.loads(again.payload)["celeriac"]["at"] >= before


def test_a_message_that_is_no_longer_held_is_not_postponed(rig: Rig) -> None:
    rig.push([task_message()])
    (arrival,) = rig.fetch()
    rig.settle([arrival])
    assert not rig.postpone(arrival, rig.server_ms())
    assert rig.delayed() == 0


def test_an_eta_is_read_as_celery_reads_it() -> None:
    now = datetime.now(UTC)
    for eta in (now, now.replace(tzinfo=None), now.astimezone()):
        assert eta_of({"eta": eta.isoformat()}) == now


def test_nothing_is_early_by_rounding() -> None:
    eta = datetime.now(UTC) + timedelta(hours=1)
    assert 0 <= in_ms(eta) - eta.timestamp() * 1000 < 1.001
    assert 3_599_000 < Delay(eta, "", "").wait_ms <= 3_600_000
    assert Delay(eta - timedelta(hours=2), "", "").wait_ms == 0


@pytest.mark.parametrize("eta", [None, "", "soon", 12, [], {}], ids=str)
def test_what_is_no_eta_delays_nothing(eta: object) -> None:
    assert eta_of({"eta": eta}) is None
    assert eta_of({}) is None
