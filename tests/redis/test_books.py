from __future__ import annotations

from typing import Any

from routing.redis import ledger as books
from routing.redis.ledger import Ledger, QueueLedger
from tests.support.messages import numbered, task_message
from tests.support.rig import Rig
from tests.support.wait import eventually


def read(rig: Rig, **options: Any) -> Ledger:
    return books.read(rig.client, rig.commands, **options)


def queue(rig: Rig, name: str = "q", **options: Any) -> QueueLedger:
    return read(rig, **options)[name]


def rebase(rig: Rig, ledger: QueueLedger) -> bool:
    return books.rebase(rig.client, rig.commands, ledger)


def test_an_untouched_platform_has_every_queue_of_the_table_and_balances(rig: Rig) -> None:
    ledger = read(rig)
    assert [one.queue for one in ledger.queues] == list(rig.commands.topology.queues)
    assert not ledger.is_incomplete
    assert ledger["q"].oldest_seconds is None


def test_the_places_of_all_messages_are_read_at_one_moment(rig: Rig) -> None:
    for priority in (0, 3, 9):
        rig.push(numbered(2), priority=priority)
    rig.push(numbered(1, queue="other"), "other")
    rig.settle(rig.fetch(3)[:1], "failed")
    at = queue(rig)
    assert (at.waiting, at.unacked, at["accepted"], at["failed"]) == (3, 2, 6, 1)
    assert at.difference == 0
    assert read(rig, queues=["other"]).queues[0].waiting == 1


def test_what_is_delayed_dead_or_dropped_is_seen_where_it_is(rig: Rig) -> None:
    client, keys = rig.client, rig.keys
    client.zadd(keys.delayed("q"), {"a": 1, "b": 2})
    client.lpush(keys.dead("q"), "{}")
    client.lpush(keys.dropped("q"), "{}", "{}", "{}")
    at = queue(rig)
    assert (at.delayed, at.dead_letters, at.unfinalised) == (2, 1, 3)


def test_the_oldest_message_of_all_priorities_gives_the_age(rig: Rig) -> None:
    old = '{"headers":{},"properties":{},"celeriac":{"at":1000,"redelivered":true}}'
    rig.push(numbered(2))
    rig.client.rpush(rig.keys.ready("q", 6), old)
    ledger = read(rig)
    age = ledger["q"].oldest_seconds
    assert age == (ledger.server_ms - 1000) / 1000


def test_a_quoted_stamp_inside_a_message_is_not_its_stamp(rig: Rig) -> None:
    rig.push([task_message(body=',"celeriac":{"at":1}}')])
    age = queue(rig).oldest_seconds
    assert age is not None
    assert age < 60


def test_messages_of_stock_producers_have_no_age(rig: Rig) -> None:
    rig.client.lpush(rig.keys.ready("q"), task_message())
    assert queue(rig).oldest_seconds is None


def test_messages_that_stock_producers_sent_are_a_difference_until_they_are_booked(
    rig: Rig,
) -> None:
    rig.push(numbered(2))
    rig.client.lpush(rig.keys.ready("q"), task_message(), task_message(), task_message())
    at = queue(rig)
    assert at.difference == -3
    assert at.is_incomplete
    assert rebase(rig, at)
    rig.settle(rig.fetch())
    at = queue(rig)
    assert (at["unaccounted"], at.difference, at.is_incomplete) == (3, 0, False)


def test_messages_that_were_taken_uncounted_are_a_difference_until_they_are_booked(
    rig: Rig,
) -> None:
    rig.push(numbered(3))
    before = queue(rig)
    rig.client.rpop(rig.keys.ready("q"))
    at = queue(rig)
    assert (before.difference, at.difference) == (0, 1)
    assert rebase(rig, at)
    assert (queue(rig)["unaccounted"], queue(rig).difference) == (-1, 0)


def test_booking_twice_what_was_read_once_books_once(rig: Rig) -> None:
    rig.client.lpush(rig.keys.ready("q"), task_message())
    at = queue(rig)
    assert rebase(rig, at)
    assert not rebase(rig, at)
    assert queue(rig).difference == 0


def test_a_difference_is_booked_right_while_messages_move(rig: Rig) -> None:
    rig.client.lpush(rig.keys.ready("q"), task_message())
    at = queue(rig)
    rig.push(numbered(5))
    rig.settle(rig.fetch(2))
    assert rebase(rig, at)
    assert queue(rig).difference == 0


def test_counting_again_agrees_with_the_ledger(rig: Rig) -> None:
    rig.push(numbered(4))
    rig.push(numbered(2), priority=6)
    rig.fetch(5)
    at = queue(rig, recount=True)
    assert (at.unacked, at.recorded, at.misheld) == (5, 5, 0)
    assert queue(rig).recorded is None


def test_counting_again_finds_what_stock_tools_restored(rig: Rig) -> None:
    rig.push(numbered(3))
    arrival = rig.fetch(2)[0]
    rig.client.hdel(rig.keys.records()[0], arrival.tag)
    rig.client.rpush(rig.keys.ready("q"), arrival.payload)
    at = queue(rig, recount=True)
    assert (at.unacked, at.recorded, at.misheld, at.difference) == (2, 1, -1, -1)
    assert rebase(rig, at)
    at = queue(rig, recount=True)
    assert (at.unacked, at.misheld, at.difference, at["unaccounted"]) == (1, 0, 0, 0)


def test_reading_changes_nothing(rig: Rig) -> None:
    rig.push(numbered(3))
    rig.fetch(1)
    before = dict(rig.broker.client.info("keyspace"))
    payloads, records = rig.broker.payloads("q"), rig.broker.records()
    read(rig, recount=True)
    assert (rig.broker.payloads("q"), rig.broker.records()) == (payloads, records)
    assert rig.broker.client.info("keyspace").keys() == before.keys()


def test_the_age_grows(rig: Rig) -> None:
    rig.push(numbered(1))
    eventually(lambda: (queue(rig).oldest_seconds or 0) > 0.05)
