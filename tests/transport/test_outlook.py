"""What a fetch loop says may be here in a moment."""

from __future__ import annotations

from collections.abc import Sequence

from routing.inflight.holdings import Holdings
from routing.inflight.sightings import STALE_SECONDS, Sightings
from routing.redis.values import Arrival, Exchanged, Fetch
from routing.topology.model import Topology
from routing.transport.allowances import Allowances, Consumed
from routing.transport.inbox import Inbox
from routing.transport.outlook import Outlook

TABLE = Topology.load(
    {"queues": {"a": {"prefetch": 2}, "b": {"prefetch": 2}, "c": {"prefetch": 2}}}
)


class Scene:
    """A channel of three queues."""

    def __init__(self) -> None:
        self.holdings, self.inbox, self.sightings = Holdings(TABLE), Inbox(), Sightings()
        self.asked: Sequence[str] = ()
        consumed = Consumed(list)
        for queue in TABLE.queues:
            consumed.add(queue, queue)
        self.outlook = Outlook(
            consumed,
            self.holdings,
            inbox=self.inbox,
            allowances=Allowances(consumed, self.holdings, self.inbox),
            sightings=self.sightings,
            asked=lambda: self.asked,
        )

    def saw(self, *, age: float = 0.0, **left: int) -> None:
        reply = Exchanged(server_ms=0, left=left, arrivals=[])
        self.sightings.take(reply, age_seconds=age, looked_at_all=True)


def test_what_an_exchange_asks_may_come() -> None:
    scene = Scene()
    scene.saw(a=1, b=1)
    scene.asked = ("b", "c")
    assert scene.outlook.coming() == ["b", "c"]


def test_what_is_known_to_wait_and_has_room_comes_with_the_next_exchange() -> None:
    scene = Scene()
    scene.saw(a=5, b=5, c=0)
    assert scene.outlook.coming() == ["a", "b"]
    scene.holdings.asking(Fetch("x:", (("a", 2),)))  # its prefetch is used up
    assert scene.outlook.coming() == ["b"]


def test_anything_may_come_where_nobody_could_hear() -> None:
    scene = Scene()
    scene.saw(a=0, b=0, c=0, age=2 * STALE_SECONDS)
    assert scene.outlook.coming() == ["a", "b", "c"]


def test_what_waits_for_delivery_comes() -> None:
    scene = Scene()
    scene.saw(a=0, b=0, c=0)
    scene.inbox.add([Arrival(tag="x:1", queue="b", payload=b"")])
    assert scene.outlook.coming() == ["b"]
