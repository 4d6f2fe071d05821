"""Which queues are told of as neglected, and when."""

from __future__ import annotations

from typing import Any

from routing.maintenance.presence import Neglect
from routing.redis.ledger import Ledger, QueueLedger


def at(seconds: float, **fields: Any) -> Ledger:
    queue = QueueLedger(queue="q", **fields)
    return Ledger(server_ms=int(seconds * 1000), queues=(queue,))


def told(neglect: Neglect, ledger: Ledger) -> list[str]:
    return [queue.queue for queue in neglect.look(ledger)]


def test_a_queue_is_told_of_once_when_nobody_has_consumed_it_for_a_while() -> None:
    neglect = Neglect(5.0)
    looks = [told(neglect, at(s, waiting=2, consumers=0)) for s in (0, 4, 6, 60)]
    assert looks == [[], [], ["q"], []]


def test_a_worker_that_is_back_soon_is_not_missed() -> None:
    neglect = Neglect(5.0)
    told(neglect, at(0, waiting=2, consumers=0))
    told(neglect, at(4, waiting=2, consumers=1))
    assert told(neglect, at(6, waiting=2, consumers=0)) == []
    assert neglect.tended() == []


def test_it_is_said_once_when_a_queue_is_consumed_again_and_then_anew() -> None:
    neglect = Neglect(5.0)
    for seconds in (0, 6):
        told(neglect, at(seconds, waiting=2, consumers=0))
    assert told(neglect, at(8, consumers=0)) == []  # somebody has purged it
    assert neglect.tended() == []
    told(neglect, at(9, consumers=1))
    assert neglect.tended() == ["q"]
    assert neglect.tended() == []
    told(neglect, at(10, waiting=1, consumers=0))
    assert told(neglect, at(16, waiting=1, consumers=0)) == ["q"]


def test_delayed_messages_count_when_their_time_has_come() -> None:
    neglect = Neglect(5.0)
    assert told(neglect, at(0, delayed=1, consumers=0)) == []
    assert told(neglect, at(6, delayed=1, consumers=0)) == []
    told(neglect, at(7, delayed=1, due=1, consumers=0))
    assert told(neglect, at(13, delayed=1, due=1, consumers=0)) == ["q"]
