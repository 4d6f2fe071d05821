"""A unit leaves its slot for a moment to what has its turn before and is about to come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from routing.topology.queue import QueueConfig
from routing.worker.scheduler import YIELD_AT_MOST, YIELD_SECONDS, Scheduler


@dataclass(frozen=True)
class Request:
    name: str


@dataclass(frozen=True)
class Work:
    """A unit that is never handed over."""

    queue: str

    @property
    def requests(self) -> Sequence[Any]:
        return (Request(self.queue),)

    def hand_over(self) -> None:
        raise NotImplementedError


class Desk:
    """A scheduler with two queues, whose clock the test moves."""

    def __init__(self, seconds: float) -> None:
        self.now = 0.0
        queues = {"urgent": QueueConfig(weight=8), "bulk": QueueConfig()}
        self.coming: list[str] = []
        self.scheduler = Scheduler(
            lambda: list(queues), lambda queue: queue == "bulk", clock=lambda: self.now
        )
        self.scheduler.configure(queues)
        self.unit = Work("bulk")
        for _ in range(2):  # so that it has had more than its weight
            left = self.scheduler.enter(self.unit)
            self.now += seconds
            left()
        self.scheduler.shares.arrive("urgent")

    def yields(self) -> bool:
        return self.scheduler.yields(self.unit, lambda: self.coming)


@pytest.mark.parametrize("seconds", [0.05, 2.0])
def test_a_long_unit_yields_to_what_may_come(seconds: float) -> None:
    desk = Desk(seconds)
    assert not desk.yields()
    desk.coming = ["urgent"]
    assert desk.yields()


def test_a_short_unit_yields_to_nobody() -> None:
    desk = Desk(0.005)
    desk.coming = ["urgent"]
    assert not desk.yields()


@pytest.mark.parametrize(
    ("seconds", "patience"), [(0.03, YIELD_SECONDS), (0.1, 0.005), (2.0, YIELD_AT_MOST)]
)
def test_it_yields_for_a_moment_only(seconds: float, patience: float) -> None:
    desk = Desk(seconds)
    desk.coming = ["urgent"]
    assert desk.yields()
    desk.now += 0.9 * patience
    assert desk.yields()
    desk.now += 0.2 * patience
    assert not desk.yields()


def test_what_has_its_turn_yields_to_nobody() -> None:
    desk = Desk(0.05)
    desk.unit = Work("urgent")
    desk.scheduler.enter(desk.unit)()
    desk.scheduler.times.note("urgent", "urgent", 0.05)
    desk.coming = ["bulk"]
    assert not desk.yields()
