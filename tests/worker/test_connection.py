"""Connections that break, servers that restart or forget, with tasks running, in every pool."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.servers import Server, valkey_binary
from tests.support.station import Station, station
from tests.support.wait import eventually
from tests.worker.conftest import POOLS


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for the tasks' own connections, which nobody cuts."""
    server = Server(valkey_binary(), tmp_path_factory.mktemp("e"))
    server.start()
    yield server
    server.close()


@pytest.fixture(scope="module", params=POOLS)
def at(request: pytest.FixtureRequest, valkey: Server, elsewhere: Server) -> Iterator[Station]:
    url, store = valkey.fresh_url(), elsewhere.fresh_url()
    with station(url, request.param, store=store, view=url) as running:
        yield running


@pytest.fixture(autouse=True)
def _every_task_ran_once_and_its_ack_arrived(at: Station) -> Iterator[None]:
    at.traces.client.delete("started", "ran", "starts", "runs", "gate:gate")
    yield
    at.wait_until_settled()
    counts = at.traces.counts()
    assert {name: n for name, n in counts.items() if n != 1} == {}
    assert at.traces.counts("started") == counts


def hold_some(at: Station) -> list[str]:
    """Let the worker's slots run something, with more behind it; returns all names."""
    names = at.send_many("held", 12, "gate", queue="bulk")
    for _ in range(at.worker.slots):
        at.traces.next_start()
    return names


def test_a_killed_connection_repeats_nothing_that_runs(at: Station, valkey: Server) -> None:
    names = hold_some(at)
    connected = at.worker.log.count("] Connected to")
    assert valkey.kill_clients() > 0
    if at.worker.pool != "solo":  # whose loop is in a task
        eventually(lambda: at.worker.log.count("] Connected to") > connected)
    at.traces.open("gate", times=len(names))
    at.wait_until_ran(len(names))
    assert set(at.traces.counts()) == set(names)


def test_endings_during_an_outage_arrive_on_the_next_connection(
    at: Station, valkey: Server
) -> None:
    names = at.send_many("mark", 2 * at.worker.slots, 1.5, queue="bulk")
    for _ in range(at.worker.slots):
        at.traces.next_start()
    valkey.kill_clients()
    at.wait_until_ran(len(names))


def test_connections_killed_again_and_again_lose_nothing(at: Station, valkey: Server) -> None:
    names = at.send_many("mark", 250, 0.005, queue="bulk")
    for done in (30, 100, 170):
        eventually(lambda done=done: at.traces.total() >= done, 30)  # type: ignore[misc]
        valkey.kill_clients()
    at.wait_until_ran(len(names))


def test_a_broker_restart_loses_and_repeats_nothing(at: Station, valkey: Server) -> None:
    names = at.send_many("mark", 150, 0.01, queue="bulk")
    eventually(lambda: at.traces.total() >= 30, 30)
    before = at.worker.log.count("] Connected to")
    valkey.restart()
    eventually(lambda: at.worker.log.count("] Connected to") > before, 30)
    at.wait_until_ran(len(names), timeout=40)


def test_scripts_that_the_server_forgot_are_loaded_again(at: Station) -> None:
    names = at.send_many("mark", 200, 0.005, queue="bulk")
    for done in (30, 80, 130):
        eventually(lambda done=done: at.traces.total() >= done, 30)  # type: ignore[misc]
        at.broker.client.script_flush()
    at.wait_until_ran(len(names))
    assert "Unrecoverable" not in at.worker.log


def test_a_worker_that_idles_while_the_scripts_are_forgotten_goes_on(at: Station) -> None:
    at.wait_until_settled()
    at.broker.client.script_flush()
    assert at.send("add", 1, 2).get(timeout=10) == 3


def test_reconnects_leave_neither_connections_nor_work_behind(at: Station, valkey: Server) -> None:
    at.wait_until_settled()
    for _ in range(3):
        reconnects = at.worker.log.count("] Connected to")
        valkey.kill_clients()
        eventually(lambda n=reconnects: at.worker.log.count("] Connected to") > n)  # type: ignore[misc]
        result = at.send("add", 1, 2)
        eventually(result.ready, 20, message=lambda: at.worker.log[-5_000:])
        assert result.get(timeout=1) == 3
    at.wait_until_settled()
    # The consumer's, remote control's, and a few in each of the pools of both processes.
    assert len(at.broker.client.client_list()) <= 14
    assert at.broker.calls_per_second(seconds=3) < 8


@pytest.mark.parametrize("at", ["prefork"], indirect=True)
def test_a_payload_that_was_half_written_to_its_process_is_completed(
    at: Station, valkey: Server
) -> None:
    """A pipe holds 64 KB: the event loop is reset while the rest still waits to be written."""
    payload = "x" * 500_000
    names = [f"large-{n}" for n in range(40)]
    for name in names:
        kwargs = {"name": name, "seconds": 0.02, "payload": payload}
        at.app.tasks["basic.mark"].apply_async((), kwargs, queue="bulk", ignore_result=True)
    for done in (5, 12, 19, 26):
        eventually(lambda done=done: at.traces.total() >= done, 30)  # type: ignore[misc]
        valkey.kill_clients()
    at.wait_until_ran(len(names))
    assert set(at.traces.counts()) == set(names)


@pytest.mark.parametrize("at", ["prefork"], indirect=True)
def test_an_answer_that_was_half_read_from_its_process_is_completed(
    at: Station, valkey: Server
) -> None:
    before = at.broker.ledger("bulk").get("dead", 0)
    for _ in range(80):
        at.send("fail", "x" * 500_000, queue="bulk", ignore_result=True)
    for done in range(10, 70, 10):
        eventually(  # the connection breaks while answers pass through the pipes
            lambda n=before + done: at.broker.ledger("bulk").get("dead", 0) >= n,  # type: ignore[misc]
            30,
        )
        valkey.kill_clients()
    eventually(lambda: at.broker.ledger("bulk")["dead"] == before + 80, 30)
