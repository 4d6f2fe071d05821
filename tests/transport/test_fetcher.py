"""When the fetch loop of a channel looks again, without a server."""

from __future__ import annotations

from typing import Any

import pytest

from routing.inflight.fetch_policy import SETTLE_SECONDS
from routing.inflight.fetch_state import Exchanging
from routing.inflight.holdings import Holdings
from routing.redis.commands import Commands
from routing.redis.keys import Keys
from routing.redis.values import Exchanged, Fetch
from routing.topology.model import Topology
from routing.transport.allowances import Consumed
from routing.transport.fetcher import Fetcher
from routing.transport.link import Link
from routing.transport.settler import Settler

TABLE = Topology.load({"queues": {"q": {"prefetch": 100}}, "default_queue": "q"})


class Clock:
    """The seconds of this test, and the timers of its loop."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[tuple[float, Any]] = []

    def monotonic(self) -> float:
        return self.now

    def call_later(self, seconds: float, callback: Any) -> None:
        self.timers.append((self.now + seconds, callback))

    def fire(self) -> None:
        """Go on to the next timer."""
        (self.now, callback), *self.timers = sorted(self.timers, key=lambda timer: timer[0])
        callback()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    names = (
        "transport.fetcher",
        "transport.wakeup",
        "inflight.outbox",
        "inflight.sightings",
        "inflight.resting",
    )
    for name in (*names, "inflight.holdings"):
        monkeypatch.setattr(f"routing.{name}.time", clock)
    return clock


class Loop:
    """An event loop whose timers the clock fires."""

    is_here = True

    def __init__(self, clock: Clock) -> None:
        self.call_later = clock.call_later

    def inbox_filled(self) -> None:
        """Come round: the test does so after each timer."""


class SilentWire:
    """A connection on which nothing is sent."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.sent_at = 0.0
        self.is_out = False

    def send(self, args: Any) -> None:
        self.sent.append(args)


def test_a_loop_that_rests_is_always_woken_again(clock: Clock) -> None:
    """The timer of an ending may be due before what was found at the last look is out of date."""
    link = Link(
        commands=Commands(keys=Keys(), topology=TABLE),
        holdings=Holdings(TABLE),
        make_client=lambda: pytest.fail("nothing needs a client"),
    )
    loop: Any = Loop(clock)
    wire: Any = SilentWire()
    settler = Settler(link, lambda: loop)
    settler.is_prompt = False
    delivery: Any = None
    consumed = Consumed(lambda: ["q"])
    consumed.add("a consumer", "q")
    fetcher = Fetcher(link, wire, consumed, settler=settler, delivery=delivery, loop=lambda: loop)
    holdings = link.holdings
    holdings.settlers.attach(fetcher.name, settler)

    fetch = Fetch(f"{fetcher.name}:1:", (("q", 90),))
    holdings.asking(fetch)
    tags = [f"{fetcher.name}:1:1:{n}" for n in range(90)]
    holdings.answered(fetch, [(tag, "q", 1) for tag in tags])
    holdings.end(tags[0], "done")  # its timer is due in five milliseconds
    clock.now += 0.003
    sent = Exchanging(fetch, holdings.outbox.take_settlement(), looks_at_all=True)
    settler.rides = True
    holdings.asking(fetch)
    fetcher._take(sent, Exchanged(0, {"q": 5}, []))
    clock.now += 0.001
    holdings.end(tags[1], "done")
    assert not fetcher.send_next()
    while not wire.sent:
        assert clock.timers, "nobody wakes the loop any more"
        clock.fire()
        fetcher.send_next()
    assert clock.now <= 100.0 + 3 * SETTLE_SECONDS
