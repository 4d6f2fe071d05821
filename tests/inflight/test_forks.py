"""Processes are not forked while a thread works, and forked all the same when it hangs."""

from __future__ import annotations

import os
import threading
import time

from routing.inflight.forks import LONGEST_WAIT_SECONDS, rest, unforked


def fork_seconds() -> float:
    """Fork a child that ends at once; returns how long the fork took."""
    began = time.monotonic()
    if (child := os.fork()) == 0:
        os._exit(0)
    took = time.monotonic() - began
    assert os.waitpid(child, 0)[1] == 0
    return took


def worker(inside: threading.Event, done: threading.Event) -> threading.Thread:
    def work() -> None:
        with unforked():
            inside.set()
            done.wait(10)

    thread = threading.Thread(target=work)
    thread.start()
    assert inside.wait(10)
    return thread


def test_a_fork_waits_for_a_thread_that_works() -> None:
    inside, done = threading.Event(), threading.Event()
    thread = worker(inside, done)
    order: list[str] = []
    forking = threading.Thread(target=lambda: (fork_seconds(), order.append("forked")))
    forking.start()
    order.append("ended")
    done.set()
    forking.join(10)
    thread.join(10)
    assert order == ["ended", "forked"]


def test_a_fork_does_not_wait_for_ever() -> None:
    inside, done = threading.Event(), threading.Event()
    thread = worker(inside, done)
    assert fork_seconds() >= LONGEST_WAIT_SECONDS
    done.set()
    thread.join(10)


def test_who_forks_in_the_middle_of_work_does_not_wait_for_itself() -> None:
    with unforked(), unforked():
        assert fork_seconds() < LONGEST_WAIT_SECONDS


def test_a_thread_that_rests_holds_up_no_fork_and_works_on_afterwards() -> None:
    with unforked():
        rest(0)
        assert fork_seconds() < LONGEST_WAIT_SECONDS


def test_a_child_may_work() -> None:
    if (child := os.fork()) == 0:
        with unforked():
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
