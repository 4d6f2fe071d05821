from __future__ import annotations

import select

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.redis.values import Arrival
from routing.transport.inbox import SLICE_MESSAGES, Inbox
from routing.transport.wakeup import Nudge

arrivals = st.lists(
    st.builds(
        Arrival, tag=st.uuids().map(str), queue=st.sampled_from("abc"), payload=st.just(b"{}")
    )
)


@given(st.lists(arrivals))
def test_everything_is_delivered_once_and_each_queue_in_order(replies: list[list[Arrival]]) -> None:
    inbox, seen = Inbox(), list[Arrival]()
    for reply in replies:
        inbox.add(reply)
        inbox.deliver_slice(seen.append)
    while len(inbox):
        inbox.deliver_slice(seen.append)
    fetched = [arrival for reply in replies for arrival in reply]
    assert len(seen) == len(fetched)
    for queue in "abc":
        of_queue = [arrival for arrival in fetched if arrival.queue == queue]
        assert [arrival for arrival in seen if arrival.queue == queue] == of_queue


@given(arrivals)
def test_a_slice_is_bounded(reply: list[Arrival]) -> None:
    inbox, seen = Inbox(), list[Arrival]()
    inbox.add(reply * 40)
    inbox.deliver_slice(seen.append)
    assert len(seen) <= SLICE_MESSAGES


@given(arrivals, st.sampled_from("abc"))
def test_one_queue_can_be_taken_out_of_the_middle(reply: list[Arrival], queue: str) -> None:
    inbox = Inbox()
    inbox.add(reply)
    assert list(inbox.take_all(queue)) == [a for a in reply if a.queue == queue]
    assert inbox.waiting(queue) == 0
    rest = list(inbox.take_all())
    assert sorted(a.tag for a in rest) == sorted(a.tag for a in reply if a.queue != queue)
    assert len(inbox) == 0


def test_an_urgent_message_does_not_wait_behind_those_of_another_queue() -> None:
    inbox, seen = Inbox(), list[str]()
    inbox.add([Arrival(str(n), "bulk", b"{}") for n in range(500)])
    inbox.add([Arrival("urgent", "realtime", b"{}")])
    inbox.deliver_slice(lambda arrival: seen.append(arrival.tag))
    assert seen.index("urgent") <= 1


def test_a_delivery_that_raises_leaves_the_rest_for_later() -> None:
    inbox, seen = Inbox(), list[str]()

    def deliver(arrival: Arrival) -> None:
        if arrival.tag == "2":
            raise ConnectionError
        seen.append(arrival.tag)

    inbox.add([Arrival(tag, "q", b"{}") for tag in "123"])
    with pytest.raises(ConnectionError):
        inbox.deliver_slice(deliver)
    inbox.deliver_slice(deliver)
    assert seen == ["1", "3"]


def test_a_nudge_is_readable_until_it_is_cleared() -> None:
    nudge = Nudge()
    try:
        for _ in range(2):
            nudge.set()
            nudge.set()
            assert select.select([nudge], [], [], 0)[0] == [nudge]
            nudge.clear()
            nudge.clear()
            assert select.select([nudge], [], [], 0)[0] == []
    finally:
        nudge.close()
