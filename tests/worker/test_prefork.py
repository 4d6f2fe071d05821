"""What only pools of processes have: children that are killed, replaced, added."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from celery.exceptions import TaskRevokedError, TimeLimitExceeded

from tests.support.results import value
from tests.support.servers import Server
from tests.support.station import Station, station
from tests.support.wait import elapse, eventually


@pytest.fixture(scope="module")
def at(valkey: Server) -> Iterator[Station]:
    with station(valkey.fresh_url(), "prefork", 2) as running:
        yield running


@pytest.fixture(autouse=True)
def _nothing_stays_unacknowledged(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "at" in request.fixturenames:
        request.getfixturevalue("at").wait_until_settled()


def start(at: Station, **options: object) -> tuple[str, Any]:
    """Send a task that waits for its gate; returns its name, once it has started, and result."""
    name = secrets.token_hex(4)
    result = at.send("held", name, name, queue="bulk", task_id=name, **options)
    eventually(lambda: at.traces.counts("started").get(name) == 1)
    return name, result


def child_of(at: Station, name: str) -> int:
    """Return the process that runs a task."""
    inspect = at.app.control.inspect(timeout=5, destination=[at.worker.name])
    (active,) = inspect.active().values()
    pids: list[int] = [task["worker_pid"] for task in active if task["id"] == name]
    return pids[0]


def test_a_task_whose_process_is_killed_runs_again_and_is_charged(at: Station) -> None:
    name, result = start(at)
    os.kill(child_of(at, name), signal.SIGKILL)
    eventually(lambda: at.traces.counts("started").get(name) == 2, 20)
    count, why = at.broker.charges()[name]
    assert count == 1
    assert why.startswith(f"its process was lost on {at.worker.name}")
    assert "SIGKILL" in why
    at.traces.open(name)
    assert result.get(timeout=10) == name
    at.wait_until_settled()
    assert not at.broker.charges()


def test_work_behind_a_killed_process_goes_on(at: Station) -> None:
    name, result = start(at)
    before = at.traces.total()
    at.send_many("mark", 100, 0.005, queue="bulk")
    os.kill(child_of(at, name), signal.SIGKILL)
    eventually(lambda: at.traces.counts("started").get(name) == 2, 20)
    at.traces.open(name)
    at.wait_until_ran(before + 101)
    assert result.get(timeout=10) == name


def test_a_task_over_its_time_limit_fails_and_is_settled(at: Station) -> None:
    dead = at.broker.ledger("bulk").get("dead", 0)
    _, result = start(at, time_limit=1)
    with pytest.raises(TimeLimitExceeded):
        result.get(timeout=20)
    at.wait_until_settled()
    assert at.broker.ledger("bulk")["dead"] == dead + 1


def test_a_revoked_task_that_runs_is_terminated_and_settled(at: Station) -> None:
    name, result = start(at)
    at.app.control.revoke(name, terminate=True, destination=[at.worker.name])
    with pytest.raises(TaskRevokedError):
        result.get(timeout=20)


def test_a_revoked_task_that_waits_is_never_started(at: Station) -> None:
    names = [start(at)[0] for _ in range(2)]
    waiting = secrets.token_hex(4)
    result = at.send("mark", waiting, queue="bulk", task_id=waiting)
    at.app.control.revoke(waiting, destination=[at.worker.name], reply=True, timeout=5)
    for name in names:
        at.traces.open(name)
    with pytest.raises(TaskRevokedError):
        result.get(timeout=10)
    assert waiting not in at.traces.counts("started")


def test_slots_stay_in_use_after_all_this(at: Station) -> None:
    names = [start(at)[0] for _ in range(2)]
    for name in names:
        at.traces.open(name)
    eventually(lambda: set(names) <= set(at.traces.counts()))


def test_added_processes_are_used(valkey: Server) -> None:
    with station(valkey.fresh_url(), "prefork", 1) as at:
        at.tell("pool_grow", 2)
        names = [start(at)[0] for _ in range(3)]
        for name in names:
            at.traces.open(name)
        at.wait_until_ran(3)
        at.wait_until_settled()


@pytest.mark.parametrize(
    "arguments",
    [["--max-tasks-per-child", "10"], ["--autoscale", "4,1"], ["-O", "default"]],
    ids=" ".join,
)
def test_a_pool_that_changes_loses_and_repeats_nothing(
    valkey: Server, arguments: list[str]
) -> None:
    with station(valkey.fresh_url(), "prefork", 2, arguments=arguments) as at:
        names = at.send_many("mark", 100, 0.01, queue="bulk")
        at.wait_until_ran(100)
        at.wait_until_settled()
        assert at.traces.counts() == dict.fromkeys(names, 1)


def test_a_cold_shutdown_loses_nothing(valkey: Server) -> None:
    with station(valkey.fresh_url(), "prefork", 2) as at:
        names = at.send_many("held", 6, "gate", queue="bulk")
        for _ in range(2):
            at.traces.next_start()
        at.worker.send(signal.SIGQUIT)
        at.worker.wait()
        assert at.broker.length("bulk") + at.broker.unacked("bulk") == len(names)
        assert at.broker.holds_nothing()
        at.traces.open("gate", times=len(names))
        at.worker.start()
        at.wait_until_ran(len(names))
        assert set(at.traces.counts()) == set(names)


def test_a_pool_process_that_dies_with_the_connection_ends_no_worker(valkey: Server) -> None:
    url = valkey.fresh_url()
    with station(url) as at:
        for milliseconds in range(4):
            connected = at.worker.log.count("] Connected to")
            os.kill(at.worker.children[0], signal.SIGKILL)
            elapse(milliseconds / 1000)
            valkey.kill_clients(int(url.rpartition("/")[2]))
            eventually(
                lambda n=connected: (
                    at.worker.log.count("] Connected to") > n or not at.worker.running
                )
            )
            assert at.worker.running
            assert value(at.send("add", 1, 2), timeout=20) == 3
