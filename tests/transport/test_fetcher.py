"""When the fetch loop of a channel looks again, without a server."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from routing.inflight.holdings import Holdings
from routing.redis.commands import Verbs
from routing.redis.keys import Keys
from routing.redis.values import Exchanged, Fetch
from routing.topology.model import Topology
from routing.transport import fetcher as module
from routing.transport.fetcher import Courier

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
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr("routing.inflight.outbox.time", clock)
    return clock


def test_a_loop_that_rests_is_always_woken_again(clock: Clock) -> None:
    """The timer of an ending may be due before what was found at the last look is out of date."""
    holdings = Holdings(TABLE)
    sent: list[Any] = []
    connection = SimpleNamespace(hub=object(), call_later=clock.call_later)
    channel: Any = SimpleNamespace(
        runtime=SimpleNamespace(holdings=holdings),
        verbs=Verbs(keys=Keys(), topology=TABLE),
        connection=connection,
        engine_queues=["q"],
        free_queues=[],
        _in_poll=None,
    )
    courier = Courier(channel)
    courier._send = lambda args: sent.append(args)  # type: ignore[method-assign]
    holdings.attach(courier.name, courier)

    fetch = Fetch(f"{courier.name}:1:", (("q", 90),))
    holdings.asking(fetch)
    tags = [f"{courier.name}:1:1:{n}" for n in range(90)]
    holdings.answered(fetch, [(tag, "q", 1) for tag in tags])
    holdings.end(tags[0], "done")  # its timer is due in five milliseconds
    clock.now += 0.003
    courier._settlement = holdings.outbox.take_settlement()
    courier._fetch = fetch
    holdings.asking(fetch)
    courier._take(Exchanged(0, 0, {"q": 5}, [], 0))
    clock.now += 0.001
    holdings.end(tags[1], "done")
    assert not courier.send_next()
    while not sent:
        assert clock.timers, "nobody wakes the loop any more"
        clock.fire()
        courier.send_next()
    assert clock.now <= 100.0 + 3 * module.SETTLE_SECONDS
