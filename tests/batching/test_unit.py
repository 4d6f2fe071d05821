"""A batch on its way through the pool."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from celery import Celery

from batching.consumer.unit import BatchUnit
from batching.outcomes import Blame
from routing.inflight.held import State
from routing.inflight.holdings import Holdings
from routing.redis.values import Fetch
from routing.topology.model import Topology
from routing.transport.message import EngineMessage
from routing.worker.interruption import mark


def test_a_batch_that_leaves_its_turn_to_a_fuller_one_counts_as_waiting_again() -> None:
    holdings = Holdings(Topology.load({"queues": {"q": {}}}))
    fetch = Fetch("x:1:", (("q", 1),))
    holdings.asking(fetch)
    holdings.answered(fetch, [("tag", "q", 1)])
    message = object.__new__(EngineMessage)
    message.delivery_tag, message.is_held = "tag", True
    message.link = SimpleNamespace(holdings=holdings)  # type: ignore[assignment]
    item: Any = SimpleNamespace(message=message)
    unused: list[bool] = []
    slots: Any = SimpleNamespace(unused=lambda: unused.append(True))
    unit = BatchUnit(
        None, None, queue="q", requests=[item], wait=lambda: True, close=list, slots=slots
    )
    mark([item], State.HANDED)
    assert holdings.ready.count("q") == 0
    unit.hand_over()
    assert holdings.ready.count("q") == 1
    assert unused == [True]


def test_a_part_that_has_ended_is_followed_by_one_call_though_its_limit_strikes_then() -> None:
    goes_on: list[Any] = []
    bisection: Any = SimpleNamespace(over=lambda left, **_: goes_on.append(left))
    told = SimpleNamespace(send_events=False, name="t.t", acks_late=True, app=Celery())
    told.backend = SimpleNamespace()

    class Item:
        message, id, ignore_result, acknowledged = None, "a", True, False

        def end(self, ended: Any) -> None:
            self.acknowledged = True

    unit = BatchUnit(
        told,
        SimpleNamespace(event_dispatcher=None),
        queue="q",
        requests=[Item()],  # type: ignore[list-item]
        wait=lambda: False,
        close=list,
        slots=SimpleNamespace(),  # type: ignore[arg-type]
        blame=Blame.ALONE,
        bisection=bisection,
    )
    unit.on_done([(0, "None", 0.1)])
    unit.on_timeout(False, 1.0)
    assert goes_on == [[]]
