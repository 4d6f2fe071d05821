"""A rate limit counts calls: batches, and the further calls of a search."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from batching.consumer.pace import Pace, PacedSlots
from batching.consumer.sizes import Window


class Item:
    def __init__(self) -> None:
        self.is_limited = False

    def limit(self, *, is_limited: bool) -> None:
        self.is_limited = is_limited


class Rate:
    """A bucket from which a test lets calls go, and the timer that looks again."""

    def __init__(self) -> None:
        self.tokens = 0
        self.looks: list[Callable[[], None]] = []

    def can_consume(self, count: int) -> bool:
        self.tokens -= (may := self.tokens >= count)
        return may

    def expected_time(self, count: int) -> float:
        return 1.0

    def call_after(self, seconds: float, look: Callable[[], None]) -> object:
        self.looks.append(look)
        return look

    def cancel(self, look: Any) -> None:
        if look in self.looks:
            self.looks.remove(look)

    def let_go(self, count: int) -> None:
        self.tokens += count
        for look in self.looks[:]:
            self.looks.remove(look)
            look()


def paced(rate: Rate | None) -> tuple[Pace, list[Any]]:
    begun: list[Any] = []
    consumer = SimpleNamespace(
        disable_rate_limits=rate is None, task_buckets={"t": rate}, timer=rate
    )
    return Pace(consumer, "t", submit=begun.append, lock=threading.RLock()), begun


def window() -> Window[Any, Any]:
    return Window("group", 0.0, entries=[Item()])


def slots_of(pace: Pace, begun: list[Any]) -> PacedSlots:
    slots: Any = SimpleNamespace(
        unused=None, failed=None, again=begun.append, soon=lambda callback: callback()
    )
    return PacedSlots(slots, pace)


def test_a_further_call_of_a_search_waits_for_the_rate_behind_what_came_before() -> None:
    rate = Rate()
    pace, begun = paced(rate)
    first, unit = window(), SimpleNamespace(requests=[Item()])
    pace.take(first)
    slots_of(pace, begun).call_again(unit)  # type: ignore[arg-type]
    assert begun == []
    assert all(item.is_limited for item in (*first.entries, *unit.requests))
    rate.let_go(1)
    assert begun == [first]
    assert unit.requests[0].is_limited
    rate.let_go(1)
    assert begun == [first, unit]
    assert not unit.requests[0].is_limited


def test_what_has_an_outcome_to_settle_is_no_call() -> None:
    pace, begun = paced(Rate())
    slots_of(pace, begun).again("settled")  # type: ignore[arg-type]
    assert begun == ["settled"]


def test_without_a_rate_nothing_waits() -> None:
    pace, begun = paced(None)
    unit = SimpleNamespace(requests=[Item()])
    slots_of(pace, begun).call_again(unit)  # type: ignore[arg-type]
    assert begun == [unit]
