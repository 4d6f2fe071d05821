"""One call for all who asked for one until then, by a loop's timer or by a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable

from routing.transport.wakeup import Wakeup
from tests.support.wait import eventually

SECONDS = 10


class Loop:
    """An event loop that the test turns."""

    def __init__(self) -> None:
        self.is_here = True
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.soon: list[Callable[[], None]] = []

    def call_later(self, seconds: float, callback: Callable[[], None]) -> None:
        self.timers.append((seconds, callback))

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.soon.append(callback)

    def inbox_filled(self) -> None:
        raise AssertionError("nobody asked for that")


def test_a_thread_calls_once_for_all_who_asked_until_then() -> None:
    called = threading.Semaphore(0)
    wakeup = Wakeup(called.release, lambda: None)
    for _ in range(5):
        wakeup.within(0.05)
    assert called.acquire(timeout=SECONDS)
    assert not called.acquire(timeout=0.1)
    wakeup.within(0)
    assert called.acquire(timeout=SECONDS), "the next asks are heard"
    wakeup.stop()


def test_who_asks_for_an_earlier_time_gets_it() -> None:
    called = threading.Event()
    wakeup = Wakeup(called.set, lambda: None)
    wakeup.within(3600)
    wakeup.within(0.01)
    assert called.wait(SECONDS)
    wakeup.stop()


def test_what_a_call_raises_ends_no_later_one() -> None:
    called = threading.Semaphore(0)

    def fail() -> None:
        called.release()
        raise ValueError("a defect")

    wakeup = Wakeup(fail, lambda: None)
    for _ in range(2):
        wakeup.within(0)
        assert called.acquire(timeout=SECONDS)
        eventually(lambda: not wakeup.is_set)
    wakeup.stop()


def test_nothing_is_called_after_a_stop() -> None:
    called = threading.Event()
    wakeup = Wakeup(called.set, lambda: None)
    wakeup.within(0.05)
    wakeup.stop()
    wakeup.stop()
    wakeup.within(0)
    assert not called.wait(0.15)


def test_the_loop_sets_a_timer_only_for_an_earlier_time() -> None:
    loop, calls = Loop(), []
    wakeup = Wakeup(lambda: calls.append(1), lambda: loop)
    wakeup.within(1.0)
    wakeup.within(2.0)
    assert [seconds for seconds, _ in loop.timers] == [1.0]
    wakeup.within(0.5)
    assert [seconds for seconds, _ in loop.timers] == [1.0, 0.5]
    loop.timers[1][1]()
    assert calls == [1]
    assert not wakeup.is_set


def test_other_threads_have_the_loop_set_its_timer() -> None:
    loop = Loop()
    wakeup = Wakeup(lambda: None, lambda: loop)
    loop.is_here = False
    wakeup.within(1.0)
    assert not loop.timers, "it is the loop's own thread's"
    loop.is_here = True
    loop.soon.pop()()
    ((seconds, _),) = loop.timers
    assert 0 < seconds <= 1.0
