"""What is looked after when the loop of a prefork pool is reset."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from io import BytesIO
from itertools import repeat
from types import SimpleNamespace
from typing import Any

import pytest
from billiard.exceptions import RestartFreqExceeded
from billiard.pool import READY
from billiard.queues import _SimpleQueue
from celery.concurrency.asynpool import AsynPool

from routing.worker.failure import StandIn
from routing.worker.prefork import Pipes


def pool_that(*, maintains: Callable[[], None], starting: Sequence[Any] = ()) -> Any:
    """Return what replaces processes, of which some may not have come up."""
    return SimpleNamespace(
        _result_handler=SimpleNamespace(_recv_message=None),
        _track_child_process=None,
        _untrack_child_process=lambda process, hub: None,
        _waiting_to_start=starting,
        maintain_pool=maintains,
    )


def test_a_process_whose_end_was_noticed_is_not_watched_again() -> None:
    watched: list[Any] = []
    pool = SimpleNamespace(
        _result_handler=SimpleNamespace(_recv_message=None),
        _track_child_process=lambda process, hub: watched.append(process),
    )
    Pipes(pool)
    fresh, alive = SimpleNamespace(), SimpleNamespace(_sentinel_poll=7)
    gone = SimpleNamespace(_sentinel_poll=None)
    for process in (fresh, gone, alive):
        pool._track_child_process(process, None)
    assert watched == [fresh, alive]


@pytest.mark.parametrize("looks", [0, 3])
def test_a_process_is_replaced_as_soon_as_it_has_ended(looks: int) -> None:
    """Its files close before it can be waited for."""
    codes = iter([*[None] * looks, -9])
    process = SimpleNamespace(exitcode=None)
    later: list[Any] = []
    calls: list[str] = []
    hub = SimpleNamespace(call_later=lambda seconds, call, *args: later.append((call, args)))
    pool = pool_that(maintains=lambda: calls.append("replaced"))
    Pipes(pool)
    process.exitcode = next(codes)
    pool._event_process_exit(hub, process)
    for _ in range(looks):
        assert not calls
        process.exitcode = next(codes)
        call, args = later.pop()
        call(*args)
    assert calls == ["replaced"]
    assert not later


def test_an_answer_that_cannot_be_read_fails_its_own_job_alone() -> None:
    def receive(_: Any, __: int, callback: Any, *, load: Any) -> None:
        callback(load(BytesIO(b"no pickle at all")))

    process = SimpleNamespace(pid=7, inqW_fd=70)
    ours = SimpleNamespace(_job=1, _worker_pid=7, ready=lambda: False)
    other = SimpleNamespace(_job=2, _worker_pid=8, ready=lambda: False)
    pool = SimpleNamespace(
        _result_handler=SimpleNamespace(_recv_message=receive, fileno_to_outq={5: process}),
        _track_child_process=None,
        _cache={2: other, 1: ours},
    )
    Pipes(pool)
    answers: list[Any] = []
    pool._result_handler._recv_message(None, 5, answers.append)
    ((state, (job, _, (succeeded, failure), writer)),) = answers
    assert (state, job, succeeded, writer) == (READY, 1, False, 70)
    assert isinstance(failure.exception, StandIn)
    assert type(failure.exception).__name__ == "AnswerUnreadable"


def test_a_handler_that_comes_while_the_pipes_are_completed_leaves_it_at_that() -> None:
    flushed: list[Any] = []

    def flush(write: Any, writer: Any) -> None:
        flushed.append(writer)
        pipes.finish()

    writers = ["one", "other"]
    jobs = [SimpleNamespace(_writer=lambda w=w: w, _write_to=object()) for w in writers]
    pool = SimpleNamespace(
        _result_handler=SimpleNamespace(_recv_message=None, _hub=None),
        _track_child_process=None,
        _active_writers=set(writers),
        _cache=dict(enumerate(jobs)),
        _flush_writer=flush,
    )
    pipes = Pipes(pool)
    pipes.finish()
    assert sorted(flushed) == writers
    assert not pool._active_writers
    pool._active_writers.add("one")
    pipes.finish()
    assert flushed[2:] == ["one"]


def test_a_process_that_never_came_up_is_left_to_the_pace_of_the_pool() -> None:
    """The next may not come up, either: without a pause the parent would do nothing else."""
    process = SimpleNamespace(exitcode=None)
    calls: list[str] = []
    pool = pool_that(maintains=lambda: calls.append("looked"), starting=[process])
    Pipes(pool)
    pool._event_process_exit(SimpleNamespace(), process)
    assert calls == ["looked"]


def test_too_many_restarts_end_the_worker_from_a_timer_too() -> None:
    def maintain() -> None:
        raise RestartFreqExceeded("5 in 1 s")

    later: list[Any] = []
    soon: list[Any] = []
    process = SimpleNamespace(exitcode=None)
    hub = SimpleNamespace(
        call_later=lambda seconds, call, *args: later.append((call, args)),
        call_soon=lambda call, *args: soon.append((call, args)),
    )
    pool = pool_that(maintains=maintain)
    Pipes(pool)
    pool._event_process_exit(hub, process)
    process.exitcode = 1
    call, args = later.pop()
    call(*args)
    call, args = soon.pop()
    with pytest.raises(RestartFreqExceeded):
        call(*args)


def process_with(queue: Any, *, alive: Iterator[bool]) -> Any:
    """Return a pool process that reads from this queue, and whether it lives each time."""
    return SimpleNamespace(inq=queue, _is_alive=lambda: next(alive))


def test_who_tells_processes_to_end_waits_for_no_room_in_the_pipe_of_one_that_is_gone() -> None:
    Pipes(pool_that(maintains=lambda: None))
    full, free = _SimpleQueue(wnonblock=True), _SimpleQueue(wnonblock=True)
    closed = _SimpleQueue(wnonblock=True)
    closed._writer.close()
    with suppress(BlockingIOError):
        while True:
            full._writer._send(bytes(4096))
    gone = process_with(full, alive=iter([True, True, False]))
    idle, ending = (process_with(queue, alive=repeat(True)) for queue in (free, closed))
    AsynPool._stop_task_handler(SimpleNamespace(pool=[gone, ending, idle]))
    assert free.get() is None
    full.close()
    closed._reader.close()
    free.close()
