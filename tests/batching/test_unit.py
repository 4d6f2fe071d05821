"""A batch on its way through the pool."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from batching.consumer.unit import BatchUnit
from routing.inflight.held import State
from routing.inflight.holdings import Holdings
from routing.redis.values import Fetch
from routing.topology.model import Topology


def test_a_batch_that_leaves_its_turn_to_a_fuller_one_counts_as_waiting_again() -> None:
    holdings = Holdings(Topology.load({"queues": {"q": {}}}))
    fetch = Fetch("x:1:", (("q", 1),))
    holdings.asking(fetch)
    holdings.answered(fetch, [("tag", "q", 1)])
    item: Any = SimpleNamespace(
        mark=lambda state: holdings.mark("tag", state),
    )
    unused: list[bool] = []
    slots: Any = SimpleNamespace(unused=lambda: unused.append(True))
    unit = BatchUnit(
        None, None, queue="q", requests=[item], wait=lambda: True, close=list, slots=slots
    )
    item.mark(State.HANDED)
    assert holdings.ready.count("q") == 0
    unit.hand_over()
    assert holdings.ready.count("q") == 1
    assert unused == [True]
