"""What is renewed, what may start, and what nobody can end any more."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterable

from routing.inflight.held import State
from routing.inflight.holdings import Holdings
from routing.inflight.leases import LeaseGuard
from routing.inflight.locks import Signal
from routing.message.evidence import Evidence
from routing.redis.clocks import ServerClock, boot_seconds
from routing.redis.values import Fetch, Mark
from routing.topology.model import Topology

TABLE = Topology.load({"queues": {"a": {"prefetch": 10}}, "max_inflight_bytes": 100})


class Message:
    """Something that a weak reference can watch."""


class Names:
    """A keeper of leases that notes what it is told."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def started(self, tags: Iterable[str]) -> None:
        self.heard.extend(tags)

    def ended(self) -> None:
        self.heard.append("ended")

    def check_now(self) -> None:
        self.heard.append("check")

    def stop(self) -> None:
        self.heard.append("stop")


def holding(*tags: str, size_bytes: int = 10) -> Holdings:
    holdings = Holdings(TABLE)
    holdings.durable = True
    fetch = Fetch("x:1:", (("a", len(tags)),))
    holdings.asking(fetch)
    holdings.answered(fetch, [(tag, "a", size_bytes) for tag in tags])
    for tag in tags:
        holdings.identify(tag, f"id-{tag}")
    return holdings


def test_what_is_held_is_renewed_and_what_has_started_says_so() -> None:
    holdings = holding("1", "2")
    holdings.mark(["2"], State.STARTED)
    assert holdings.leases() == [("1", ""), ("2", "1")]


def test_what_has_ended_is_renewed_until_that_is_settled() -> None:
    holdings = holding("1")
    holdings.end("1", "done")
    assert holdings.leases() == [("1", "")]
    holdings.outbox.take_settlement()
    assert holdings.leases() == []


def test_a_message_that_dies_before_it_ends_is_not_renewed_and_goes_back() -> None:
    holdings = holding("1", "2", "3")
    messages = {tag: Message() for tag in "123"}
    for tag, message in messages.items():
        holdings.watch(tag, message)
    holdings.mark(["2"], State.STARTED)
    message = messages["3"]
    del messages
    assert holdings.leases() == [("3", "")]
    assert holdings.requeue_forsaken() == 2
    ((_, returns),) = holdings.outbox.take_returns()
    assert [(r.tag, r.mark) for r in returns] == [("1", Mark.NONE), ("2", Mark.REDELIVERED)]
    assert holdings.credit.held("a") == 1
    del message


def test_a_message_that_has_ended_may_die() -> None:
    holdings = holding("1")
    message = Message()
    holdings.watch("1", message)
    holdings.end("1", "done")
    del message
    assert holdings.requeue_forsaken() == 0


def test_a_message_in_a_cycle_goes_back_once_it_is_collected() -> None:
    holdings = holding("1")
    message = Message()
    message.itself = message  # type: ignore[attr-defined]
    holdings.watch("1", message)
    del message
    gc.collect()
    assert holdings.requeue_forsaken() == 1


def test_what_is_gone_is_forgotten_and_its_ending_ignored() -> None:
    holdings = holding("1", "2")
    assert holdings.forget(["1", "unheard-of"]) == 1
    assert not holdings.end("1", "done")
    assert holdings.credit.held("a") == 1
    assert not holdings.outbox


def test_bytes_are_counted_until_their_message_ends() -> None:
    holdings = holding("1", "2", size_bytes=60)
    assert holdings.credit.byte_allowances(["a"]) == {"a": 0}
    holdings.end("1", "done")
    assert holdings.credit.byte_allowances(["a"]) == {"a": 40}
    holdings.requeue("2")
    assert holdings.credit.byte_allowances(["a"]) == {"a": 100}


def test_every_channel_that_awaits_room_hears_of_every_ending() -> None:
    holdings, heard = holding("1", "2", "3"), []
    holdings.settlers.await_room["one"] = lambda queue: heard.append(f"one {queue}")
    holdings.settlers.await_room["two"] = lambda queue: heard.append(f"two {queue}")
    holdings.end("1", "done")
    del holdings.settlers.await_room["one"]
    holdings.requeue("2")
    holdings.bury("3", Evidence(reason="rejected"))
    assert heard == ["one a", "two a", "two a", "two a"]


def test_the_keeper_hears_of_starts_and_doubts() -> None:
    holdings = holding("1")
    keeper = holdings.keeper = Names()
    holdings.mark(["1"], State.HANDED)
    holdings.mark(["1"], State.STARTED)
    holdings.doubt()
    holdings.dismiss()
    holdings.dismiss()
    assert keeper.heard == ["1", "check", "stop"]


def test_nothing_may_start_before_a_confirmation_and_past_its_end() -> None:
    lease_guard = LeaseGuard()
    assert not lease_guard.holds
    lease_guard.confirm(boot_seconds() + 60)
    assert lease_guard.holds
    lease_guard.drop()
    assert not lease_guard.holds
    lease_guard.confirm(boot_seconds() - 0.001)
    assert not lease_guard.holds


def test_the_servers_time_is_unknown_until_it_was_told() -> None:
    clock = ServerClock()
    assert clock.now_ms() == 0
    clock.learn(5_000_000)
    assert 5_000_000 <= clock.now_ms() < 5_010_000


def test_a_signal_wakes_once_however_often_it_is_set() -> None:
    signal = Signal()
    signal.set()
    signal.set()
    assert signal.wait(0)
    assert not signal.wait(0)
    threading.Timer(0.01, signal.set).start()
    assert signal.wait(10)
