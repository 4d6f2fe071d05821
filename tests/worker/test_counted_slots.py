"""Slots of pools that Celery does not count: free once what a unit has ended is noted, and once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from routing.worker.slots import CountedSlots, ran_for


class Pool:
    """A pool of two, whose units run when a test says so."""

    num_processes = 2
    is_green = True

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self.slots = CountedSlots(
            self,
            on_free=lambda: self.notes.append(f"free {self.slots.free()}"),
            on_enter=lambda: lambda ran_seconds=None: self.notes.append("left"),
            soon=lambda callback: callback(),
        )

    def on_apply(self, target: Callable[[], Any], args: Any = None, **options: Any) -> None:
        self.calls.append({"target": target, **options})

    def send(self) -> dict[str, Any]:
        self.on_apply(
            lambda: None,
            (),
            callback=lambda answer: self.notes.append("ended"),
            timeout_callback=lambda soft, seconds: self.notes.append("timed out"),
        )
        return self.calls[-1]


def test_a_slot_is_free_after_the_endings_of_its_unit_were_noted() -> None:
    pool = Pool()
    call = pool.send()
    assert pool.slots.free() == 1
    call["callback"](None)
    assert pool.notes == ["ended", "left", "free 2"]


def test_a_limit_that_strikes_before_the_task_begins_frees_the_slot() -> None:
    pool = Pool()
    pool.send()["timeout_callback"](False, 1.0)
    assert pool.notes == ["timed out", "left", "free 2"]


def test_a_unit_leaves_once_whatever_is_reported_of_it() -> None:
    pool = Pool()
    pool.send()
    call = pool.send()
    call["timeout_callback"](False, 1.0)
    call["callback"](None)
    assert pool.slots.free() == 1


def test_what_the_pool_does_not_take_keeps_no_slot() -> None:
    class Refuses(Pool):
        def on_apply(self, target: Callable[[], Any], args: Any = None, **options: Any) -> None:
            raise RuntimeError("no")

    pool = Refuses()
    with pytest.raises(RuntimeError, match="no"):
        pool.send()
    assert pool.slots.free() == 2


def test_an_answer_may_say_for_how_long_its_call_ran() -> None:
    class Answers(list[Any]):
        ran_seconds = 0.25

    assert ran_for((0, "result", 1.5)) == 1.5
    assert ran_for(Answers([(0, "result", 1.5)])) == 0.25
    for silent in ((1, "error", None), [(0, "result", 1.5)] * 3, ValueError(), False, None):
        assert ran_for(silent) is None


def test_a_slot_that_is_taken_is_not_free_before_its_unit_enters_or_leaves_it() -> None:
    pool = Pool()
    pool.slots.acquire()
    assert pool.slots.free() == 1
    pool.send()
    assert pool.slots.free() == 1, "it has entered"
    pool.slots.acquire()
    pool.slots.release()
    pool.slots.release()
    assert pool.slots.free() == 1, "what is given back twice is nobody else's"
